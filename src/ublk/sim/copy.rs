//! USER_COPY: the server reads and writes the data of requests itself.

use super::io::Mutation;
use super::state::{Stage, State};
use crate::storage::IoBuf;
use crate::ublk::uapi::{flag, op};

impl State {
    /// A server copies between `buf` and the data of the request that a tag has; `kind` is the operation whose data can go
    /// that way.
    pub(super) fn user_copy(
        &mut self,
        file: u64,
        queue: u16,
        tag: u16,
        kind: u32,
        buf: &IoBuf,
    ) -> Result<(), i32> {
        let id = self.files.get(&file).ok_or(libc::EBADF)?.device;
        let dev = self.devices.get(&id).ok_or(libc::ENODEV)?;
        if !dev.has(flag::USER_COPY) {
            return Err(libc::EACCES);
        }
        let queue = dev.queues.get(usize::from(queue)).ok_or(libc::EINVAL)?;
        let tag = queue.tags.get(usize::from(tag)).ok_or(libc::EINVAL)?;
        let number = tag.request.filter(|_| tag.stage == Stage::Serving).ok_or(libc::EINVAL)?;
        let request = self.requests.get_mut(&number).ok_or(libc::EINVAL)?;
        if !request.is(kind) {
            return Err(libc::EACCES);
        }
        self.counts.user_copies += 1;
        let lost = self.mutation == Some(Mutation::NoCopy) && self.rng.chance(1, 16);
        match kind {
            op::READ if lost => request.given = vec![0xee; buf.len()],
            op::READ => request.given = buf.to_vec(),
            _ => {
                let data = request.left();
                let len = data.len().min(buf.len());
                if !lost {
                    buf.copy_from(0, &data[..len]);
                }
                request.taken = len;
            }
        }
        Ok(())
    }
}
