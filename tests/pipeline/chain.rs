//! nbdfuse, a loop device and a mount on top of a daemon, taken down in the right order whatever happens.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::bench::tool;
use crate::wait_until;

/// The layers on top of an NBD server. They are dropped in the order of the fields: from the top down.
pub struct Stack {
    mount: Option<Mount>,
    pub device: Loop,
    _fuse: Fuse,
}

impl Stack {
    /// Makes the server's disk a loop device; `dir` is for mount points.
    pub fn new(uri: &str, dir: &Path) -> Stack {
        let fuse = Fuse::new(uri, &dir.join("fuse"));
        let device = Loop::new(&fuse.file);
        Stack { mount: None, device, _fuse: fuse }
    }

    /// Mounts the filesystem on the device; gives the mount point.
    pub fn mount(&mut self, dir: &Path) -> PathBuf {
        let point = dir.join("mnt");
        std::fs::create_dir_all(&point).unwrap();
        tool("mount", "mount", &[&self.device.node, text(&point)], dir);
        self.mount = Some(Mount(point.clone()));
        point
    }

    /// Unmounts without loss: everything was written.
    pub fn unmount(&mut self) {
        let mount = self.mount.take().unwrap();
        tool("umount", "mount", &[text(&mount.0)], Path::new("/"));
        std::mem::forget(mount);
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

struct Mount(PathBuf);

impl Drop for Mount {
    fn drop(&mut self) {
        // Below it everything may be dead: lazily, so that nothing stands in the way of the rest.
        quietly("umount", &["--lazy", text(&self.0)]);
    }
}

/// A loop device.
pub struct Loop {
    pub node: String,
}

impl Loop {
    fn new(file: &Path) -> Loop {
        let node = tool("losetup", "mount", &["--find", "--show", text(file)], Path::new("/"));
        Loop { node: node.trim().to_owned() }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        quietly("losetup", &["--detach", &self.node]);
    }
}

/// A running nbdfuse.
struct Fuse {
    child: Child,
    dir: PathBuf,
    file: PathBuf,
}

impl Fuse {
    fn new(uri: &str, dir: &Path) -> Fuse {
        std::fs::create_dir_all(dir).unwrap();
        let file = dir.join("disk");
        let child = match Command::new("nbdfuse").arg(&file).arg(uri).stderr(Stdio::null()).spawn() {
            Ok(child) => child,
            Err(e) => panic!("this test needs `nbdfuse` ({e}); try: apt-get install libnbd-bin fuse3"),
        };
        let fuse = Fuse { child, dir: dir.to_owned(), file };
        wait_until("nbdfuse has mounted (it needs /dev/fuse and fuse3)", || fuse.file.exists());
        fuse
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        // Once nobody uses it any more it ends by itself.
        quietly("fusermount3", &["-u", "-z", text(&self.dir)]);
        let start = std::time::Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if start.elapsed() > crate::PATIENCE {
                let _ = self.child.kill();
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}

/// For taking down: there is nothing to be done about a failure.
fn quietly(program: &str, args: &[&str]) {
    let _ = Command::new(program).args(args).stdout(Stdio::null()).stderr(Stdio::null()).status();
}

/// Fails, with what is missing, where the pipeline cannot be built.
pub fn require_machine() {
    let root = Command::new("id").arg("-u").output().is_ok_and(|id| id.stdout == b"0\n");
    assert!(root, "this test mounts filesystems: run it as root");
    for (node, remedy) in [("/dev/fuse", "modprobe fuse"), ("/dev/loop-control", "modprobe loop")] {
        assert!(Path::new(node).exists(), "this test needs {node}; try: {remedy}");
    }
}
