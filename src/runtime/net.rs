//! Stream sockets on the ring of the current thread.
#![expect(unsafe_code, reason = "socket system calls; each block states why it holds")]

use std::any::Any;
use std::cell::Cell;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;

use io_uring::{opcode, types};

use super::{Payload, submit};
use crate::storage::{IoBuf, IoVecs};

/// Connections the kernel keeps for a listener until they are accepted.
const BACKLOG: i32 = 128;

/// Longest path of a unix socket in bytes: `sun_path` without its closing zero, unix(7).
pub const MAX_UNIX_PATH: usize = 107;

/// Which directions [`shut_down`] ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// Reads end as if the peer had closed; replies can still be sent. Ends `accept` on a listener.
    Receive,
    /// Both: the peer sees the end of the stream, sends fail.
    Both,
}

/// The header of a vectored send with what it points to.
struct Message {
    header: libc::msghdr,
    vecs: IoVecs,
}

impl Message {
    fn new() -> Box<Message> {
        // SAFETY: all-zero is a valid msghdr: no name, no vectors, no control data.
        Box::new(Message { header: unsafe { std::mem::zeroed() }, vecs: IoVecs::new() })
    }
}

/// A connected stream socket. One send and one receive may run at a time.
pub struct Socket {
    fd: OwnedFd,
    /// The message header of the last send, for the next one.
    spare: Cell<Option<Box<Message>>>,
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket").field("fd", &self.fd).finish_non_exhaustive()
    }
}

impl Socket {
    /// Takes over a connected, blocking socket.
    pub fn new(fd: OwnedFd) -> Socket {
        Socket { fd, spare: Cell::new(None) }
    }

    /// Receives into `buf`; the count of bytes, 0 at the end of the stream. With `whole` it tries to fill `buf`
    /// before it completes, and is short only at the end of the stream or after an interruption.
    pub async fn recv(&self, buf: IoBuf, whole: bool) -> io::Result<usize> {
        let len = u32::try_from(buf.len()).unwrap_or(u32::MAX);
        let flags = if whole { libc::MSG_WAITALL } else { 0 };
        loop {
            let fd = types::Fd(self.fd.as_raw_fd());
            let entry = opcode::Recv::new(fd, buf.as_ptr(), len).flags(flags).build();
            match submit(entry, Payload::Buf(buf.clone())).await.result() {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }

    /// Sends all of `vecs`, and gives the emptied list back for the next use.
    pub async fn send(&self, vecs: IoVecs) -> (io::Result<()>, IoVecs) {
        let mut left = vecs.len();
        let mut message = self.spare.take().unwrap_or_else(Message::new);
        message.vecs = vecs;
        let mut result = Ok(());
        while left > 0 {
            let (sent, back) = self.send_once(message).await;
            message = back;
            match sent {
                Ok(0) => result = Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    left -= count.min(left);
                    message.vecs.advance(count);
                    continue;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => result = Err(e),
            }
            break;
        }
        let mut vecs = std::mem::take(&mut message.vecs);
        vecs.clear();
        self.spare.set(Some(message));
        (result, vecs)
    }

    async fn send_once(&self, mut message: Box<Message>) -> (io::Result<usize>, Box<Message>) {
        let raw = message.vecs.raw();
        let (first, count) = (raw.as_ptr().cast_mut(), raw.len());
        message.header.msg_iov = first;
        message.header.msg_iovlen = count;
        // NOSIGNAL: a peer that went away is an error here, not a signal to the process. WAITALL: the kernel
        // itself goes on after a full socket buffer.
        let flags = libc::MSG_NOSIGNAL.cast_unsigned() | libc::MSG_WAITALL.cast_unsigned();
        let header = ptr::from_ref(&message.header);
        let entry = opcode::SendMsg::new(types::Fd(self.fd.as_raw_fd()), header).flags(flags).build();
        let output = submit(entry, Payload::Other(message as Box<dyn Any>)).await;
        let result = output.result();
        let Payload::Other(any) = output.payload else {
            unreachable!("the payload comes back as it was given")
        };
        let Ok(message) = any.downcast::<Message>() else { unreachable!("as above") };
        (result, message)
    }

    /// Ends one or both directions, also for operations that are waiting now.
    pub fn shut_down(&self, direction: Direction) {
        shut_down(&self.fd, direction);
    }
}

/// Ends `direction` of a socket, also for operations that are waiting in it now. A socket whose peer has gone
/// is left as it is.
pub fn shut_down(fd: &OwnedFd, direction: Direction) {
    let how = match direction {
        Direction::Receive => libc::SHUT_RD,
        Direction::Both => libc::SHUT_RDWR,
    };
    // SAFETY: no pointers. The only errors are ENOTCONN and the like: there is nothing left to end.
    unsafe { libc::shutdown(fd.as_raw_fd(), how) };
}

/// Takes the next connection of a listener.
pub async fn accept(listener: &OwnedFd) -> io::Result<OwnedFd> {
    let fd = types::Fd(listener.as_raw_fd());
    let entry = opcode::Accept::new(fd, ptr::null_mut(), ptr::null_mut()).flags(libc::SOCK_CLOEXEC).build();
    let fd = submit(entry, Payload::None).await.result()?;
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel made this descriptor for this completion, which is seen once.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes a unix stream socket and binds it to `path`, which must not exist. Nobody can connect before
/// [`listen`], so owner and mode can be set in between.
pub fn bind_unix(path: &Path) -> io::Result<OwnedFd> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.len() > MAX_UNIX_PATH || bytes.contains(&0) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: all-zero is a valid sockaddr_un.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX.cast_unsigned() as libc::sa_family_t;
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = from.cast_signed();
    }
    // SAFETY: no pointers; the result is checked and owned once.
    let fd = unsafe {
        let fd = libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(fd)
    };
    // SAFETY: the address lives over the call and its size is given.
    let bound = unsafe {
        let size = size_of_val(&address) as libc::socklen_t;
        libc::bind(fd.as_raw_fd(), ptr::from_ref(&address).cast(), size)
    };
    if bound == 0 { Ok(fd) } else { Err(io::Error::last_os_error()) }
}

/// Lets clients connect to a bound socket.
pub fn listen(fd: &OwnedFd) -> io::Result<()> {
    // SAFETY: no pointers.
    if unsafe { libc::listen(fd.as_raw_fd(), BACKLOG) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Settings of an accepted TCP connection: small replies go out at once, and a peer that vanished without a
/// word is noticed by keep-alive probes.
pub fn tune_tcp(fd: &OwnedFd) -> io::Result<()> {
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)?;
    set_option(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1)?;
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, 60)?;
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, 15)
}

fn set_option(fd: &OwnedFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    let size = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the value lives over the call and its size is given.
    let set = unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, ptr::from_ref(&value).cast(), size) };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::{RingOptions, Runtime, spawn};
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    fn runtime() -> Runtime {
        Runtime::new(RingOptions { entries: 16 }).unwrap()
    }

    #[test]
    fn a_send_larger_than_the_socket_buffer_arrives_whole() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let reader = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            theirs.read_to_end(&mut bytes).unwrap();
            bytes
        });
        runtime().block_on(async move {
            let socket = Socket::new(ours.into());
            let mut vecs = IoVecs::one(IoBuf::from_slice(b"head"));
            vecs.push(IoBuf::from_slice(&vec![7; 3 << 20]));
            let (result, vecs) = socket.send(vecs).await;
            result.unwrap();
            assert!(vecs.is_empty());
        });
        let bytes = reader.join().unwrap();
        assert_eq!((&bytes[..4], bytes.len()), (&b"head"[..], 4 + (3 << 20)));
        assert!(bytes[4..].iter().all(|&b| b == 7));
    }

    #[test]
    fn a_shutdown_ends_a_waiting_receive_and_a_send_to_nobody_is_an_error() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        runtime().block_on(async move {
            let socket = std::rc::Rc::new(Socket::new(ours.into()));
            theirs.write_all(b"abc").unwrap();
            let buf = IoBuf::zeroed(8);
            assert_eq!(socket.recv(buf.clone(), false).await.unwrap(), 3);
            let waiting = spawn({
                let socket = socket.clone();
                async move { socket.recv(buf, true).await }
            });
            // One turn of the loop: the operation is in the kernel.
            crate::runtime::sleep(std::time::Duration::ZERO).await;
            socket.shut_down(Direction::Receive);
            assert_eq!(waiting.await.unwrap(), 0);
            drop(theirs);
            assert!(socket.send(IoVecs::one(IoBuf::zeroed(1))).await.0.is_err());
        });
    }

    #[test]
    fn a_shutdown_ends_a_waiting_accept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = std::rc::Rc::new(bind_unix(&path).unwrap());
        listen(&listener).unwrap();
        runtime().block_on(async move {
            let client = UnixStream::connect(&path).unwrap();
            accept(&listener).await.unwrap();
            drop(client);
            let waiting = spawn({
                let listener = listener.clone();
                async move { accept(&listener).await }
            });
            // One turn of the loop: the operation is in the kernel.
            crate::runtime::sleep(std::time::Duration::ZERO).await;
            shut_down(&listener, Direction::Receive);
            assert!(waiting.await.is_err());
        });
    }
}
