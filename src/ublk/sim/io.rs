//! The commands of queues.

use super::state::{OpState, Stage, State, ThreadId};
use crate::storage::IoBuf;
use crate::ublk::uapi::{IoCmd, flag, io, op};

/// Something that goes wrong with one commit in sixteen, as if the server were broken: tests must find it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mutation {
    /// A sector less than was done.
    ShortCount,
    /// A sector more.
    LongCount,
    /// It names the next tag.
    WrongTag,
    /// It is never sent.
    Lost,
    /// It is sent twice.
    Twice,
    /// A failed request is committed as done, and one that is done as failed.
    Inverted,
    /// It is a fetch.
    WrongCommand,
    /// Not a commit: a copy by the server moves nothing.
    NoCopy,
}

impl Mutation {
    /// All of them.
    pub const ALL: [Mutation; 8] = [
        Mutation::ShortCount,
        Mutation::LongCount,
        Mutation::WrongTag,
        Mutation::Lost,
        Mutation::Twice,
        Mutation::Inverted,
        Mutation::WrongCommand,
        Mutation::NoCopy,
    ];
}

impl State {
    /// [`State::io`], unless a mutation makes something else of it.
    pub(super) fn mutated_io(
        &mut self,
        thread: ThreadId,
        file: u64,
        number: u32,
        mut cmd: IoCmd,
        buf: Option<IoBuf>,
    ) -> u64 {
        let commit = self.profile.io(number) == Some(io::COMMIT_AND_FETCH_REQ);
        let mutation = self.mutation.filter(|_| commit && self.rng.chance(1, 16));
        let mut sent = number;
        match mutation {
            None | Some(Mutation::NoCopy) => {}
            Some(Mutation::ShortCount) => cmd.result -= if cmd.result >= 512 { 512 } else { 0 },
            Some(Mutation::LongCount) => cmd.result += 512,
            Some(Mutation::WrongTag) => cmd.tag += 1,
            Some(Mutation::Lost) => {
                let op = self.number();
                self.ops.insert(op, OpState { thread, result: None, waker: None });
                return op;
            }
            Some(Mutation::Twice) => drop(self.io(thread, file, number, cmd, buf.clone())),
            Some(Mutation::Inverted) => cmd.result = if cmd.result < 0 { 0 } else { -libc::EIO },
            Some(Mutation::WrongCommand) if number < 256 => sent = io::FETCH_REQ.raw,
            Some(Mutation::WrongCommand) => sent = io::FETCH_REQ.encoded,
        }
        self.io(thread, file, sent, cmd, buf)
    }

    /// A command that `thread` sends through the open file `file`; its result comes with the operation.
    fn io(&mut self, thread: ThreadId, file: u64, number: u32, cmd: IoCmd, buf: Option<IoBuf>) -> u64 {
        self.counts.io += 1;
        *self.sent.entry(number).or_default() += 1;
        let op = self.number();
        self.ops.insert(op, OpState { thread, result: None, waker: None });
        if let Err(errno) = self.io_command(op, thread, file, number, cmd, buf) {
            self.counts.refused += 1;
            self.end_op(op, -errno);
        }
        op
    }

    fn io_command(
        &mut self,
        op: u64,
        thread: ThreadId,
        file: u64,
        number: u32,
        cmd: IoCmd,
        buf: Option<IoBuf>,
    ) -> Result<(), i32> {
        let profile = self.profile;
        let unknown = if profile.is(6, 4) { libc::EOPNOTSUPP } else { libc::EINVAL };
        let id = self.files.get(&file).ok_or(libc::EBADF)?.device;
        let command = profile.io(number).ok_or(unknown)?;
        let dev = self.devices.get_mut(&id).ok_or(libc::ENODEV)?;
        // With NEED_GET_DATA a buffer may be named later, with USER_COPY none may be named.
        let copies = dev.has(flag::USER_COPY);
        let entry = buf.as_ref().and_then(IoBuf::entry);
        let wrong_buffer = match copies {
            // An entry is named elsewhere, and only where somebody puts pages there.
            true => cmd.addr != 0 || entry.is_some() != dev.has(flag::AUTO_BUF_REG),
            false => cmd.addr == 0 && !dev.has(flag::NEED_GET_DATA),
        };
        let queue = dev.queues.get_mut(usize::from(cmd.q_id)).ok_or(libc::EINVAL)?;
        let at = usize::from(cmd.tag);
        // Before 6.16 a queue belongs to a thread, then a tag does.
        let daemon = match profile.is(6, 16) {
            true => queue.tags.get(at).and_then(|tag| tag.daemon),
            false => queue.tags.iter().find_map(|tag| tag.daemon),
        };
        if daemon.is_some_and(|daemon| daemon != thread) {
            return Err(libc::EINVAL);
        }
        let ready = queue.is_ready();
        let tag = queue.tags.get_mut(at).ok_or(libc::EINVAL)?;
        if matches!(tag.stage, Stage::Idle(_) | Stage::Getting(_)) {
            return Err(libc::EBUSY);
        }
        if (tag.stage == Stage::Asking) != (command == io::NEED_GET_DATA) {
            return Err(libc::EINVAL);
        }
        match command {
            io::FETCH_REQ if ready => Err(libc::EBUSY),
            io::FETCH_REQ if tag.stage != Stage::New || wrong_buffer => Err(libc::EINVAL),
            io::FETCH_REQ => {
                (tag.stage, tag.buf, tag.daemon) = (Stage::Idle(op), buf, Some(thread));
                queue.fetched += 1;
                Ok(())
            }
            io::COMMIT_AND_FETCH_REQ => {
                let request = tag.request.and_then(|number| self.requests.get(&number));
                let reads = request.is_some_and(|request| request.is(op::READ));
                let late = cmd.addr == 0 && reads && !copies;
                if tag.stage != Stage::Serving || wrong_buffer || late {
                    return Err(libc::EINVAL);
                }
                (tag.stage, tag.buf) = (Stage::Idle(op), buf);
                self.commit(id, cmd.q_id, at, cmd.result);
                self.take_away_if_over(id, cmd.q_id, at, op);
                Ok(())
            }
            _ => {
                (tag.stage, tag.buf) = (Stage::Getting(op), buf);
                Ok(())
            }
        }
    }

    /// A commit to a queue that QUIESCE_DEV has cancelled: its fetch may stay until the ring goes, or come back.
    fn take_away_if_over(&mut self, id: u32, queue: u16, at: usize, op: u64) {
        let Some(dev) = self.devices.get_mut(&id) else { return };
        if dev.canceling && self.rng.chance(1, 2) {
            dev.queues[usize::from(queue)].tags[at].stage = Stage::Aborted;
            self.end_op(op, crate::ublk::uapi::io_result::ABORT);
        }
    }
}
