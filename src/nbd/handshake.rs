//! From the greeting to the transmission phase: "Fixed newstyle negotiation".

use std::rc::Rc;
use std::sync::Arc;

use super::export::{Export, Exports};
use super::limits::{HANDSHAKE_CHUNK, MAX_OPTION_BYTES, MAX_OPTION_SKIP, MAX_OPTIONS};
use super::options::{self, OptionHeader, option, reply};
use super::protocol::transmission_flags;
use super::stream::{End, Input, Stream};
use crate::device::{Disk, Geometry};
use crate::storage::{IoBuf, IoVecs};

/// What client and server agreed on.
#[derive(Debug)]
pub(super) struct Agreed<D: Disk> {
    pub(super) export: Arc<Export<D>>,
    /// The disk as it was announced.
    pub(super) disk: Geometry,
    /// READ is answered in chunks.
    pub(super) structured: bool,
}

/// Talks to a new client until it has chosen an export.
pub(super) async fn negotiate<S: Stream, D: Disk>(
    stream: &Rc<S>,
    input: &mut Input<S>,
    exports: &Exports<D>,
) -> Result<Agreed<D>, End> {
    let mut handshake = Handshake { stream, exports, out: Vec::new(), no_zeroes: false, structured: false };
    handshake.out.extend(options::GREETING);
    handshake.send().await?;
    let flags = u32::from_be_bytes(input.take().await?);
    if flags & !(options::CLIENT_FIXED_NEWSTYLE | options::CLIENT_NO_ZEROES) != 0 {
        return Err(End::Violation("unknown client flag"));
    }
    handshake.no_zeroes = flags & options::CLIENT_NO_ZEROES != 0;
    for _ in 0..MAX_OPTIONS {
        let Some(header) = options::parse_option(&input.take().await?) else {
            return Err(End::Violation("option without its magic"));
        };
        let agreed = match handshake.data(input, header).await? {
            Some(data) => handshake.answer(header.option, &data).await?,
            None => None,
        };
        handshake.send().await?;
        if let Some(agreed) = agreed {
            return Ok(agreed);
        }
    }
    Err(End::Violation("too many options"))
}

struct Handshake<'a, S, D: Disk> {
    stream: &'a Rc<S>,
    exports: &'a Exports<D>,
    /// Replies that are not yet sent.
    out: Vec<u8>,
    no_zeroes: bool,
    structured: bool,
}

impl<S: Stream, D: Disk> Handshake<'_, S, D> {
    /// Receives an option's data; `None` if it was too long, skipped and refused.
    async fn data(&mut self, input: &mut Input<S>, header: OptionHeader) -> Result<Option<Vec<u8>>, End> {
        let length = header.length as usize;
        if header.length <= MAX_OPTION_BYTES {
            return Ok(Some(input.take_vec(length).await?));
        }
        // EXPORT_NAME has no way to be refused.
        if header.length > MAX_OPTION_SKIP || header.option == option::EXPORT_NAME {
            return Err(End::Violation("option data too long"));
        }
        input.skip(length).await?;
        self.refuse(header.option, reply::ERR_TOO_BIG, "option data too long");
        Ok(None)
    }

    /// Answers one option; gives the agreement if that ends the handshake.
    async fn answer(&mut self, number: u32, data: &[u8]) -> Result<Option<Agreed<D>>, End> {
        match number {
            option::EXPORT_NAME => return self.export_name(data).map(Some),
            option::ABORT => {
                self.acknowledge(number);
                self.send().await?;
                return Err(End::Disconnect);
            }
            option::INFO | option::GO => return Ok(self.info(number, data)),
            option::LIST if data.is_empty() => self.list().await?,
            option::STRUCTURED_REPLY if data.is_empty() => {
                self.structured = true;
                self.acknowledge(number);
            }
            option::LIST | option::STRUCTURED_REPLY => {
                self.refuse(number, reply::ERR_INVALID, "this option has no data");
            }
            _ => self.refuse(number, reply::ERR_UNSUP, "option not supported"),
        }
        Ok(None)
    }

    fn export_name(&mut self, data: &[u8]) -> Result<Agreed<D>, End> {
        let export = options::parse_name(data).and_then(|name| self.exports.find(&name));
        // "the server MUST terminate the session"
        let export = export.ok_or(End::Violation("EXPORT_NAME of an unknown export"))?;
        let agreed = self.agree(export);
        let flags = transmission_flags(&agreed.disk, self.structured);
        self.out.extend(agreed.disk.size.to_be_bytes());
        self.out.extend(flags.to_be_bytes());
        if !self.no_zeroes {
            self.out.extend([0; options::EXPORT_NAME_ZEROES]);
        }
        Ok(agreed)
    }

    fn info(&mut self, number: u32, data: &[u8]) -> Option<Agreed<D>> {
        let Some(request) = options::parse_info(data) else {
            self.refuse(number, reply::ERR_INVALID, "malformed request");
            return None;
        };
        let Some(export) = self.exports.find(&request.name) else {
            self.refuse(number, reply::ERR_UNKNOWN, "no such export");
            return None;
        };
        let agreed = self.agree(export);
        let flags = transmission_flags(&agreed.disk, self.structured);
        let description = &agreed.export.description;
        options::push_facts(&mut self.out, number, &request, description, (&agreed.disk, flags));
        self.acknowledge(number);
        (number == option::GO).then_some(agreed)
    }

    fn agree(&self, export: Arc<Export<D>>) -> Agreed<D> {
        let disk = export.disk.geometry();
        Agreed { export, disk, structured: self.structured }
    }

    async fn list(&mut self) -> Result<(), End> {
        let mut index = 0;
        while let Some(export) = self.exports.get(index) {
            options::push_server(&mut self.out, &export.name, &export.description);
            if self.out.len() >= HANDSHAKE_CHUNK {
                self.send().await?;
            }
            index += 1;
        }
        self.acknowledge(option::LIST);
        Ok(())
    }

    fn acknowledge(&mut self, number: u32) {
        options::push_reply(&mut self.out, number, reply::ACK, &[]);
    }

    fn refuse(&mut self, number: u32, kind: u32, message: &str) {
        options::push_reply(&mut self.out, number, kind, &[message.as_bytes()]);
    }

    async fn send(&mut self) -> Result<(), End> {
        if !self.out.is_empty() {
            self.stream.send(IoVecs::one(IoBuf::from_slice(&self.out))).await.0?;
            self.out.clear();
        }
        Ok(())
    }
}
