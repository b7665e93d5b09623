//! A process that speaks to the simulated driver by hand, command by command.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use cowdisk::storage::IoBuf;
use cowdisk::ublk::driver::{Admin, AdminCall, CharDevice, Driver};
use cowdisk::ublk::sim::{Machine, Server, SimAdmin, SimChar, SimOp};
use cowdisk::ublk::uapi::{
    Command, CtrlDevInfo, IoCmd, NO_QUEUE, ParamBasic, ParamDiscard, Params, admin, attr, flag, io, param,
};

pub struct Raw {
    pub server: Server,
    admin: SimAdmin,
    /// Commands go out in ioctl encoding.
    pub encoded: bool,
}

pub const DEPTH: u16 = 4;

/// Parameters of a disk of 1 MiB.
pub fn params() -> Params {
    Params {
        len: 152,
        types: param::BASIC | param::DISCARD,
        basic: ParamBasic {
            attrs: attr::VOLATILE_CACHE | attr::FUA,
            logical_bs_shift: 9,
            physical_bs_shift: 12,
            io_opt_shift: 12,
            io_min_shift: 12,
            max_sectors: 16,
            dev_sectors: 2048,
            ..ParamBasic::default()
        },
        discard: ParamDiscard {
            discard_granularity: 4096,
            max_discard_sectors: 1024,
            max_write_zeroes_sectors: 1024,
            max_discard_segments: 1,
            ..ParamDiscard::default()
        },
        ..Params::default()
    }
}

/// A device of one queue with 4 tags and requests of 8 KiB.
pub fn info(id: u32, flags: u64) -> CtrlDevInfo {
    CtrlDevInfo {
        nr_hw_queues: 1,
        queue_depth: DEPTH,
        max_io_buf_bytes: 8192,
        dev_id: id,
        flags,
        ublksrv_flags: 77,
        ..CtrlDevInfo::default()
    }
}

impl Raw {
    pub fn new(machine: &Machine, encoded: bool) -> Raw {
        let server = machine.boot();
        let admin = server.open_admin().unwrap();
        Raw { server, admin, encoded }
    }

    pub const fn number(&self, command: Command) -> u32 {
        if self.encoded { command.encoded } else { command.raw }
    }

    pub fn call(&mut self, call: &AdminCall<'_>) -> Option<i32> {
        self.admin.run(call).ok()
    }

    /// Sends `command` with `bytes`, `data` inline; its answer and what it filled. `None`: it did not end.
    pub fn try_send(&mut self, command: Command, device: u32, data: u64, bytes: &mut [u8]) -> Option<i32> {
        let call = AdminCall {
            number: self.number(command),
            device,
            queue: NO_QUEUE,
            data,
            send: bytes,
            len: u16::try_from(bytes.len()).unwrap(),
            path_len: 0,
            bound: Duration::from_secs(5),
        };
        let code = self.admin.run(&call).ok()?;
        self.admin.received(bytes);
        Some(code)
    }

    pub fn send(&mut self, command: Command, device: u32, data: u64, bytes: &mut [u8]) -> i32 {
        self.try_send(command, device, data, bytes).expect("it ends in time")
    }

    pub fn simple(&mut self, command: Command, device: u32, data: u64) -> i32 {
        self.send(command, device, data, &mut [])
    }

    pub fn add(&mut self, info: CtrlDevInfo) -> Result<CtrlDevInfo, i32> {
        let mut bytes = info.to_bytes();
        match self.send(admin::ADD_DEV, info.dev_id, 0, &mut bytes) {
            0 => Ok(CtrlDevInfo::from_bytes(&bytes)),
            code => Err(code),
        }
    }

    pub fn info(&mut self, device: u32) -> Result<CtrlDevInfo, i32> {
        let mut bytes = CtrlDevInfo::default().to_bytes();
        match self.send(admin::GET_DEV_INFO, device, 0, &mut bytes) {
            0 => Ok(CtrlDevInfo::from_bytes(&bytes)),
            code => Err(code),
        }
    }

    pub fn set_params(&mut self, device: u32, params: &Params) -> i32 {
        self.send(admin::SET_PARAMS, device, 0, &mut params.to_bytes())
    }

    pub fn params(&mut self, device: u32) -> Result<Params, i32> {
        let mut bytes = Params { len: 152, ..Params::default() }.to_bytes();
        match self.send(admin::GET_PARAMS, device, 0, &mut bytes) {
            0 => Ok(Params::from_bytes(&bytes)),
            code => Err(code),
        }
    }

    pub fn open(&self, device: u32) -> Tags {
        Tags::new(&self.server, self.server.open_char(device).unwrap(), self.encoded)
    }

    /// ADD_DEV to START_DEV, for a device of [`info`]. The tags are fetched.
    pub fn start(&mut self, id: u32, flags: u64) -> Tags {
        let info = self.add(info(id, flags)).unwrap();
        assert_eq!(self.set_params(info.dev_id, &params()), 0);
        let mut tags = self.open(info.dev_id);
        tags.names_buffers = info.flags & flag::USER_COPY == 0;
        tags.fetch_all();
        // The kernel looks for partitions, which needs an answer: none of ours starts by itself.
        let pid = u64::from(self.server.pid());
        let start = self.number(admin::START_DEV);
        let call = AdminCall {
            number: start,
            device: info.dev_id,
            queue: NO_QUEUE,
            data: pid,
            send: &[],
            len: 0,
            path_len: 0,
            bound: Duration::from_millis(50),
        };
        let _ = self.call(&call);
        tags.serve_one(512);
        tags
    }
}

/// The tags of queue 0, driven by hand.
pub struct Tags {
    server: Server,
    pub char: SimChar,
    encoded: bool,
    /// Commands name the tag's buffer.
    pub names_buffers: bool,
    pub bufs: Vec<IoBuf>,
    pub ops: Vec<Option<SimOp>>,
}

impl Tags {
    pub fn new(server: &Server, char: SimChar, encoded: bool) -> Tags {
        let bufs = (0..DEPTH).map(|_| IoBuf::zeroed(8192)).collect();
        let ops = (0..DEPTH).map(|_| None).collect();
        Tags { server: server.clone(), char, encoded, names_buffers: true, bufs, ops }
    }

    /// Sends a command as thread 1.
    pub fn io(&self, command: Command, q_id: u16, tag: u16, result: i32) -> SimOp {
        self.io_as(1, command, q_id, tag, result)
    }

    pub fn io_as(&self, thread: u32, command: Command, q_id: u16, tag: u16, result: i32) -> SimOp {
        let number = if self.encoded { command.encoded } else { command.raw };
        let buf = self.bufs[usize::from(tag) % self.bufs.len()].clone();
        let payload = IoCmd { q_id, tag, result, addr: 0 };
        let buf = self.names_buffers.then_some(buf);
        self.server.as_thread(thread, || self.char.io(number, payload, buf))
    }

    pub fn fetch_all(&mut self) {
        for tag in 0..DEPTH {
            self.ops[usize::from(tag)] = Some(self.io(io::FETCH_REQ, 0, tag, 0));
        }
    }

    /// A tag with a completion, and that.
    pub fn completed(&mut self) -> Option<(u16, i32)> {
        (0..DEPTH).find_map(|tag| {
            let result = result(self.ops[usize::from(tag)].as_mut()?)?;
            self.ops[usize::from(tag)] = None;
            Some((tag, result))
        })
    }

    /// Waits for a completion.
    pub fn next(&mut self) -> (u16, i32) {
        for _ in 0..1000 {
            if let Some(completed) = self.completed() {
                return completed;
            }
            self.server.work(1);
        }
        panic!("no completion");
    }

    pub fn commit(&mut self, tag: u16, result: i32) {
        self.ops[usize::from(tag)] = Some(self.io(io::COMMIT_AND_FETCH_REQ, 0, tag, result));
    }

    /// Takes a request and commits `result`.
    pub fn serve_one(&mut self, result: i32) -> u16 {
        let (tag, got) = self.next();
        assert_eq!(got, 0);
        if let (Ok(bytes @ 1..), false) = (usize::try_from(result), self.names_buffers) {
            let buf = self.bufs[usize::from(tag)].slice(0..bytes);
            // One of the two, whichever the request is.
            let copied = self.char.copy_to_request(0, tag, &buf);
            copied.or_else(|_| self.char.copy_from_request(0, tag, &buf)).unwrap();
        }
        self.commit(tag, result);
        self.server.work(50);
        tag
    }
}

/// The result of a command, if it has one.
pub fn result(op: &mut SimOp) -> Option<i32> {
    match Pin::new(op).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => Some(result),
        Poll::Pending => None,
    }
}
