//! Where a server listens.

use std::fs;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::runtime::net::{self, Direction, MAX_UNIX_PATH};
use crate::{Error, Kind, Result};

/// How long a socket that answers may belong to a dying server, and the time between two looks.
const DYING_SERVER: Duration = Duration::from_secs(2);
const DYING_STEP: Duration = Duration::from_millis(20);

/// Where clients connect to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Address {
    /// A unix stream socket.
    Unix(PathBuf),
    /// `HOST:PORT`; port 0 takes a free one.
    Tcp(String),
}

impl Address {
    /// Reads `unix:PATH` or `tcp:HOST:PORT`.
    ///
    /// # Errors
    /// `Usage`, with what is wrong.
    pub fn parse(text: &str) -> Result<Address> {
        let usage =
            |message: String| Error::new(Kind::Usage, message).hint("--nbd unix:PATH or --nbd tcp:HOST:PORT");
        match text.split_once(':') {
            Some(("unix", "")) => Err(usage(format!("NBD address {text:?} has no path after `unix:`"))),
            Some(("unix", path)) => Ok(Address::Unix(path.into())),
            Some(("tcp", rest)) => match rest.rsplit_once(':') {
                Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => {
                    Ok(Address::Tcp(rest.to_owned()))
                }
                Some(("", _)) => Err(usage(format!("NBD address {text:?} has no host"))),
                Some((_, port)) => Err(usage(format!("NBD address {text:?}: {port:?} is no port number"))),
                None => Err(usage(format!("NBD address {text:?} has no port"))),
            },
            _ => Err(usage(format!("NBD address {text:?} starts with neither `unix:` nor `tcp:`"))),
        }
    }
}

/// Owner and mode of a unix socket.
#[derive(Clone, Copy, Debug)]
pub(super) struct Access {
    pub(super) mode: u32,
    pub(super) owner: Option<(u32, u32)>,
}

/// A socket that accepts connections.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) fd: OwnedFd,
    /// The socket's file with its device and inode numbers, to remove that one and no other.
    file: Option<(PathBuf, (u64, u64))>,
    uri: String,
}

impl Listener {
    pub(super) fn open(address: &Address, access: Access) -> Result<Listener> {
        match address {
            Address::Unix(path) => open_unix(path, access),
            Address::Tcp(host_port) => open_tcp(host_port),
        }
    }

    /// The default export's address as NBD clients take it (NBD URI specification).
    pub(super) fn uri(&self) -> &str {
        &self.uri
    }

    pub(super) const fn is_tcp(&self) -> bool {
        self.file.is_none()
    }

    /// Refuses clients from now on, and removes the socket's file.
    pub(super) fn close(&self) -> Result<()> {
        let removed = match &self.file {
            Some((path, id)) if identity(path).is_ok_and(|now| now == *id) => {
                fs::remove_file(path).map_err(|e| Error::io("cannot remove the socket", e).at(path))
            }
            _ => Ok(()),
        };
        net::shut_down(&self.fd, Direction::Receive);
        removed
    }
}

fn open_tcp(host_port: &str) -> Result<Listener> {
    let fail = |e| Error::io(format!("cannot listen on tcp:{host_port}"), e);
    let listener = TcpListener::bind(host_port).map_err(|e| match e.kind() {
        io::ErrorKind::AddrInUse => Error::new(Kind::InUse, format!("tcp:{host_port} is in use")),
        _ => fail(e),
    })?;
    let uri = format!("nbd://{}", listener.local_addr().map_err(fail)?);
    Ok(Listener { fd: listener.into(), file: None, uri })
}

fn open_unix(path: &Path, access: Access) -> Result<Listener> {
    let fail = |e| Error::io("cannot make the socket", e).at(path);
    let length = path.as_os_str().len();
    if length > MAX_UNIX_PATH {
        let message = format!("a socket's path has at most {MAX_UNIX_PATH} bytes, this one has {length}");
        return Err(Error::new(Kind::BadName, message).at(path));
    }
    remove_stale(path)?;
    let absolute = std::path::absolute(path).map_err(fail)?;
    let fd = net::bind_unix(path).map_err(|e| match e.kind() {
        io::ErrorKind::AddrInUse => Error::new(Kind::InUse, "another server took the socket").at(path),
        _ => fail(e),
    })?;
    let id = match set_access(path, access).and_then(|id| net::listen(&fd).map(|()| id)) {
        Ok(id) => id,
        Err(e) => {
            // It was made by `bind_unix` just now, so it is ours to remove; the first error is the one to tell.
            let _ = fs::remove_file(path);
            return Err(fail(e));
        }
    };
    let uri = format!("nbd+unix:///?socket={}", escape(absolute.as_os_str().as_bytes()));
    Ok(Listener { fd, file: Some((absolute, id)), uri })
}

/// Asks who listens. A killed server's socket answers until the last of its operations has ended: that is waited for.
fn connect(path: &Path) -> io::Result<UnixStream> {
    let end = Instant::now() + DYING_SERVER;
    loop {
        let answer = UnixStream::connect(path);
        if answer.is_err() || Instant::now() >= end {
            return answer;
        }
        std::thread::sleep(DYING_STEP);
    }
}

/// Removes a socket that nobody listens on any more.
fn remove_stale(path: &Path) -> Result<()> {
    let fail = |e| Error::io("cannot use the path for a socket", e).at(path);
    let meta = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(fail(e)),
    };
    if !meta.file_type().is_socket() {
        return Err(Error::new(Kind::Exists, "there is a file that is no socket").at(path));
    }
    match connect(path) {
        Ok(_) => Err(Error::new(Kind::InUse, "another server listens on the socket").at(path)),
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            // Another server may have replaced it meanwhile: then this is not the socket that was asked.
            if identity(path).is_ok_and(|now| now == (meta.dev(), meta.ino())) {
                fs::remove_file(path).map_err(fail)?;
            }
            Ok(())
        }
        Err(e) => Err(fail(e)),
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|meta| (meta.dev(), meta.ino()))
}

/// Sets owner and mode of a socket's file before anybody can connect; its identity. The file is held open
/// meanwhile, so that nobody can put a link to another file in its place.
fn set_access(path: &Path, access: Access) -> io::Result<(u64, u64)> {
    let held = fs::OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_NOFOLLOW).open(path)?;
    let meta = held.metadata()?;
    if !meta.file_type().is_socket() {
        return Err(io::Error::other("it was replaced by another file"));
    }
    let held_path = format!("/proc/self/fd/{}", held.as_raw_fd());
    if let Some((uid, gid)) = access.owner
        && (uid, gid) != (meta.uid(), meta.gid())
    {
        std::os::unix::fs::chown(&held_path, Some(uid), Some(gid))?;
    }
    fs::set_permissions(&held_path, fs::Permissions::from_mode(access.mode & 0o777))?;
    Ok((meta.dev(), meta.ino()))
}

/// Percent-encodes what a URI's query may not have (RFC 3986, 2.3); slashes stay.
fn escape(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            out.push(byte.into());
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACCESS: Access = Access { mode: 0o660, owner: None };

    fn kind(text: &str) -> Kind {
        Address::parse(text).unwrap_err().kind()
    }

    #[test]
    fn addresses_are_named_in_full() {
        assert_eq!(Address::parse("unix:/a b/c:d").unwrap(), Address::Unix("/a b/c:d".into()));
        assert_eq!(Address::parse("tcp:localhost:10809").unwrap(), Address::Tcp("localhost:10809".into()));
        assert_eq!(Address::parse("tcp:[::1]:0").unwrap(), Address::Tcp("[::1]:0".into()));
        for bad in
            ["", "unix", "unix:", "tcp:", "tcp:host", "tcp::1", "tcp:h:", "tcp:h:99999", "/path", "udp:h:1"]
        {
            assert_eq!(kind(bad), Kind::Usage, "{bad:?}");
        }
    }

    #[test]
    fn a_uri_survives_any_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a b&c%?.sock");
        let listener = Listener::open(&Address::Unix(path.clone()), ACCESS).unwrap();
        assert!(listener.uri().ends_with("/a%20b%26c%25%3F.sock"), "{}", listener.uri());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        listener.close().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn only_a_socket_that_nobody_answers_on_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let address = Address::Unix(path.clone());
        let first = Listener::open(&address, ACCESS).unwrap();
        assert_eq!(Listener::open(&address, ACCESS).unwrap_err().kind(), Kind::InUse);
        net::shut_down(&first.fd, Direction::Receive);
        let second = Listener::open(&address, ACCESS).unwrap();
        first.close().unwrap();
        assert!(path.exists(), "the first server removed the second one's socket");
        second.close().unwrap();
        fs::write(&path, "data").unwrap();
        assert_eq!(Listener::open(&address, ACCESS).unwrap_err().kind(), Kind::Exists);
        assert_eq!(fs::read(&path).unwrap(), b"data");
    }

    #[test]
    fn a_path_that_is_too_long_is_named_as_such() {
        let path = PathBuf::from(format!("/tmp/{}", "x".repeat(110)));
        let error = Listener::open(&Address::Unix(path), ACCESS).unwrap_err();
        assert_eq!(error.kind(), Kind::BadName);
        assert!(error.to_string().contains("at most 107 bytes"), "{error}");
    }
}
