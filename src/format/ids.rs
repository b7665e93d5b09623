//! Identities: 128 random bits each.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        pub struct $name(pub [u8; 16]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                for (i, byte) in self.0.iter().enumerate() {
                    if matches!(i, 4 | 6 | 8 | 10) {
                        f.write_str("-")?;
                    }
                    write!(f, "{byte:02x}")?;
                }
                Ok(())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

id_type!(
    /// The user's disk: stays through snapshots; a fork gets a new one.
    DiskId
);
id_type!(
    /// One layer file's content: whoever changes what a sealed layer contains gives it a new one.
    LayerId
);
id_type!(
    /// One run of a host's kernel, as the kernel names it; all zeros: unknown.
    BootId
);

impl BootId {
    /// True if both are known, and one: what a process completed in one is there in the other.
    pub fn is(self, other: BootId) -> bool {
        self == other && self != BootId::default()
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn ids_print_like_uuids() {
        let id = super::DiskId([0xab; 16]);
        assert_eq!(id.to_string(), "abababab-abab-abab-abab-abababababab");
    }

    #[test]
    fn an_unknown_boot_is_no_boot() {
        let (one, other, unknown) =
            (super::BootId([1; 16]), super::BootId([2; 16]), super::BootId::default());
        assert!(one.is(one));
        assert!(!one.is(other) && !one.is(unknown) && !unknown.is(unknown));
    }
}
