//! What a kernel's release tells: trouble with ublk that no probe finds without running into it.

use super::{Finding, Level};

/// The release of a kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Release {
    /// `6.12.43`: 6, 12 and 43. Distributions that number on their own have 0 at the end.
    pub version: (u32, u32, u32),
    /// Built by Ubuntu, whose stable patches do not show in the version.
    pub ubuntu: bool,
}

impl Release {
    /// Out of `uname -r` (`6.12.43+deb13-cloud-amd64`, `6.17.0-14-generic`, `7.1-rc3`) and `/proc/version`.
    pub fn parse(release: &str, version: &str) -> Option<Release> {
        let end = release.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(release.len());
        let mut numbers = release[..end].split('.').map(|part| part.parse::<u32>().ok());
        let (major, minor) = (numbers.next()??, numbers.next()??);
        let patch = numbers.next().flatten().unwrap_or(0);
        Some(Release { version: (major, minor, patch), ubuntu: version.contains("Ubuntu") })
    }

    fn before(self, major: u32, minor: u32) -> bool {
        self.version < (major, minor, 0)
    }

    /// Within these versions, both included.
    fn within(self, first: (u32, u32, u32), last: (u32, u32, u32)) -> bool {
        (first..=last).contains(&self.version)
    }
}

const CHECK: &str = "kernel";
/// A patch level above all that there will be.
const ANY: u32 = u32::MAX;

/// What is known of the ublk driver of `release`. `inside`: this process lives in a PID namespace of its own.
pub fn known_trouble(release: Release, inside: bool) -> Vec<Finding> {
    let limited = |message, why, hint: &str| Finding::new((CHECK, Level::Limited), message, why, hint);
    let note = |message, why, hint: &str| Finding::new((CHECK, Level::Note), message, why, hint);
    let nbd = "update the kernel, or use `--frontend nbd`";
    let mut found = Vec::new();
    if release.before(6, 1) {
        found.push(limited(
            "the kernel is older than 6.1",
            "a ublk device does not outlive its daemon, and cowdisk is not tested there",
            nbd,
        ));
    }
    if release.within((6, 18, 4), (6, 18, 5)) || release.ubuntu && release.within((6, 17, 0), (6, 17, ANY)) {
        found.push(limited(
            "ublk's ADD_DEV dereferences a null pointer in 6.18.4, 6.18.5 and some of Ubuntu's 6.17 kernels",
            "starting a device may crash the kernel",
            nbd,
        ));
    }
    if inside && release.within((6, 17, 0), (6, 18, 7)) {
        found.push(limited(
            "ublk's START_DEV fails with EINVAL in a PID namespace from 6.17 to 6.18.7",
            "no device can be started from this container",
            "run cowdisk in the host's PID namespace, or use `--frontend nbd`",
        ));
    }
    if release.within((6, 18, 40), (6, 18, ANY)) || release.within((7, 0, 0), (7, 0, ANY)) {
        found.push(limited(
            "ublk's control commands can hang in 6.18.40 and later and in 7.0 when devices are made and removed at once",
            "a start or stop may not end",
            "start and stop one device at a time, or use 7.1 or later",
        ));
    }
    if release.before(6, 15) {
        found.push(note(
            "before 6.15 ublk notices the death of a busy daemon late, by its request timeout",
            "requests of a device whose daemon died with every tag in use wait that much longer",
            "nothing: cowdisk sets the timeout to 100 ms",
        ));
        found.push(note(
            "6.12 was seen to oops in a recovery after a death between two queues' first requests",
            "a second death in the first milliseconds of a recovery may leave a device that nobody can take up",
            "serve with one queue, the default, on such a kernel",
        ));
    }
    if release.before(6, 18) {
        found.push(note(
            "before 6.18 a daemon that is killed while ublk's START_DEV looks for partitions can never end",
            "its image stays locked, and its device waits, until the machine is restarted",
            "end daemons with SIGTERM, and kill none before it is ready",
        ));
    }
    if release.before(7, 1) {
        found.push(note(
            "before 7.1 the end of a ublk device has use-after-free bugs",
            "rare crashes of the kernel when devices are removed under load",
            "keep to the newest patch level of your kernel",
        ));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn release(text: &str) -> Release {
        Release::parse(text, "Linux version").unwrap()
    }

    fn messages(text: &str, version: &str, inside: bool) -> String {
        let found = known_trouble(Release::parse(text, version).unwrap(), inside);
        found.iter().map(|f| format!("{}: {}\n", f.level.name(), f.message)).collect()
    }

    #[test]
    fn releases_of_all_distributions_are_read() {
        for (text, version) in [
            ("6.12.43+deb13-cloud-amd64", (6, 12, 43)),
            ("6.1.0-37-amd64", (6, 1, 0)),
            ("6.17.0-14-generic", (6, 17, 0)),
            ("7.1-rc3", (7, 1, 0)),
            ("6.18.5-arch1-1", (6, 18, 5)),
            ("5.14.0-503.11.1.el9_5.x86_64", (5, 14, 0)),
            ("6.6", (6, 6, 0)),
        ] {
            assert_eq!(release(text).version, version, "{text}");
        }
        for bad in ["", "6", "x.y", "6.", "99999999999.1", "-"] {
            assert_eq!(Release::parse(bad, ""), None, "{bad}");
        }
        assert!(Release::parse("6.17.0-14-generic", "Linux (buildd@x) (Ubuntu 13.3)").unwrap().ubuntu);
    }

    #[test]
    fn trouble_is_known_by_its_versions_and_by_no_others() {
        let null = "dereferences a null";
        for bad in ["6.18.4", "6.18.5-arch1"] {
            assert!(messages(bad, "", false).contains(null), "{bad}");
        }
        assert!(messages("6.17.0-5-generic", "Ubuntu", false).contains(null));
        for good in ["6.18.3", "6.18.6", "6.17.0-5-generic", "7.1.0"] {
            assert!(!messages(good, "", false).contains(null), "{good}");
        }
        let pid = "in a PID namespace";
        for (text, inside, hit) in [
            ("6.16.9", true, false),
            ("6.17.0", true, true),
            ("6.18.7", true, true),
            ("6.18.8", true, false),
            ("6.18.7", false, false),
        ] {
            assert_eq!(messages(text, "", inside).contains(pid), hit, "{text}");
        }
        let hang = "can hang";
        for (text, hit) in [("6.18.39", false), ("6.18.40", true), ("7.0.2", true), ("7.1.0", false)] {
            assert_eq!(messages(text, "", false).contains(hang), hit, "{text}");
        }
    }

    #[test]
    fn a_current_kernel_has_no_trouble_and_an_old_one_is_told_so() {
        assert_eq!(messages("7.1.0", "", true), "");
        assert!(messages("6.0.19", "", false).starts_with("limited: the kernel is older than 6.1"));
        let stable = messages("6.12.43", "", false);
        assert!(stable.lines().count() == 4 && !stable.contains("limited"), "{stable}");
    }

    #[test]
    fn each_trouble_says_why_it_matters_and_what_to_do() {
        for text in ["6.0.1", "6.12.1", "6.17.3", "6.18.4", "6.18.44", "7.0.1"] {
            for found in known_trouble(Release { ubuntu: true, ..release(text) }, true) {
                assert!(found.why.is_some() && found.hint.is_some(), "{found:?}");
            }
        }
    }
}
