//! A client that says exactly what it is told to.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;

use cowdisk::nbd::options::{OPTION_MAGIC, OPTION_REPLY_MAGIC, option, reply};
use cowdisk::nbd::protocol::{Command, Request};

pub const SIMPLE_MAGIC: u32 = 0x6744_6698;
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;

pub struct Client {
    pub stream: UnixStream,
}

/// A chunk of a structured reply.
#[derive(PartialEq, Eq, Debug)]
pub struct Chunk {
    pub done: bool,
    pub kind: u16,
    pub cookie: u64,
    pub data: Vec<u8>,
}

pub fn request(command: Command, flags: u16, offset: u64, length: u32, cookie: u64) -> Vec<u8> {
    Request { flags, command, cookie, offset, length }.encode().to_vec()
}

/// A WRITE with its payload.
pub fn write(flags: u16, offset: u64, data: &[u8], cookie: u64) -> Vec<u8> {
    let mut bytes = request(Command::Write, flags, offset, u32::try_from(data.len()).unwrap(), cookie);
    bytes.extend_from_slice(data);
    bytes
}

pub fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
    bytes.extend(number.to_be_bytes());
    bytes.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
    bytes.extend_from_slice(data);
    bytes
}

/// The data of INFO and GO.
pub fn info(name: &str, kinds: &[u16]) -> Vec<u8> {
    let mut data = u32::try_from(name.len()).unwrap().to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data.extend(u16::try_from(kinds.len()).unwrap().to_be_bytes());
    data.extend(kinds.iter().flat_map(|kind| kind.to_be_bytes()));
    data
}

impl Client {
    pub fn connect(path: &Path) -> Client {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(crate::PATIENCE)).unwrap();
        stream.set_write_timeout(Some(crate::PATIENCE)).unwrap();
        Client { stream }
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub fn receive(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.receive(2).try_into().unwrap())
    }
    pub fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.receive(4).try_into().unwrap())
    }
    pub fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.receive(8).try_into().unwrap())
    }

    /// Receives until the server closes; a reset is an end too.
    pub fn rest(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self.stream.read_to_end(&mut bytes) {
            Err(e) if e.kind() != std::io::ErrorKind::ConnectionReset => panic!("not closed: {e}"),
            _ => bytes,
        }
    }

    /// Says that nothing more comes.
    pub fn finish(&self) {
        // The server may have closed already.
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// The greeting, answered with `flags`.
    pub fn greet(&mut self, flags: u32) {
        assert_eq!(self.receive(18), b"NBDMAGICIHAVEOPT\0\x03");
        self.send(&flags.to_be_bytes());
    }

    /// One reply to option `number`: its kind and data.
    pub fn option_reply(&mut self, number: u32) -> (u32, Vec<u8>) {
        assert_eq!((self.u64(), self.u32()), (OPTION_REPLY_MAGIC, number));
        let (kind, length) = (self.u32(), self.u32());
        (kind, self.receive(length as usize))
    }

    /// Sends an option; all replies up to the one that ends them.
    pub fn ask(&mut self, number: u32, data: &[u8]) -> Vec<(u32, Vec<u8>)> {
        self.send(&option(number, data));
        let mut replies = Vec::new();
        loop {
            let next = self.option_reply(number);
            let last = next.0 == reply::ACK || next.0 >= 1 << 31;
            replies.push(next);
            if last {
                return replies;
            }
        }
    }

    /// The whole handshake; size and transmission flags of export `name`.
    pub fn begin(&mut self, structured: bool, name: &str) -> (u64, u16) {
        self.greet(3);
        if structured {
            assert_eq!(self.ask(option::STRUCTURED_REPLY, &[]), [(reply::ACK, Vec::new())]);
        }
        let replies = self.ask(option::GO, &info(name, &[]));
        let (kind, fact) = &replies[0];
        assert_eq!((*kind, &fact[..2]), (reply::INFO, &[0, 0][..]), "{replies:?}");
        let size = u64::from_be_bytes(fact[2..10].try_into().unwrap());
        (size, u16::from_be_bytes(fact[10..12].try_into().unwrap()))
    }

    /// A simple reply's error number and cookie.
    pub fn simple(&mut self) -> (u32, u64) {
        assert_eq!(self.u32(), SIMPLE_MAGIC);
        (self.u32(), self.u64())
    }

    pub fn chunk(&mut self) -> Chunk {
        assert_eq!(self.u32(), CHUNK_MAGIC);
        let (flags, kind, cookie, length) = (self.u16(), self.u16(), self.u64(), self.u32());
        Chunk { done: flags & 1 != 0, kind, cookie, data: self.receive(length as usize) }
    }

    /// Sends one request that has a simple reply; its error number.
    pub fn call(&mut self, bytes: &[u8]) -> u32 {
        let cookie = u64::from_be_bytes(bytes[8..16].try_into().unwrap());
        self.send(bytes);
        let (error, back) = self.simple();
        assert_eq!(back, cookie);
        error
    }

    /// Reads with a simple reply.
    pub fn read(&mut self, offset: u64, length: u32) -> Vec<u8> {
        assert_eq!(self.call(&request(Command::Read, 0, offset, length, 77)), 0);
        self.receive(length as usize)
    }

    pub fn disconnect(&mut self) {
        self.send(&request(Command::Disconnect, 0, 0, 0, 0));
        assert_eq!(self.rest(), b"");
    }
}
