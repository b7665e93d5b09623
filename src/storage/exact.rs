//! Whole reads and writes: loops over short results, with a bound on each retry.
//!
//! The first operation starts when the function is called, like every operation of [`File`].

use std::future::Future;
use std::io;

use super::{Done, File, IoBuf, IoVecs};

/// EINTR and EAGAIN in a row before they count as the answer.
const MAX_RETRIES: u32 = 64;

fn transient(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN))
}

/// Reads until `buf` is full or the file ends; gives the bytes read.
pub fn read_up_to<F: File>(
    file: &F,
    buf: IoBuf,
    pos: u64,
) -> impl Future<Output = io::Result<usize>> + use<F> {
    let first = file.read(buf.clone(), pos);
    let file = file.clone();
    async move { finish_read(&file, first, buf, pos).await }
}

/// Goes on with a read of all of `buf` whose first operation is `op`; gives the bytes read.
pub async fn finish_read<F: File>(file: &F, mut op: F::Op, buf: IoBuf, pos: u64) -> io::Result<usize> {
    let (mut filled, mut retries) = (0, 0);
    loop {
        match op.await.result {
            Ok(0) => return Ok(filled),
            Ok(n) => {
                filled += n;
                retries = 0;
            }
            Err(e) if transient(&e) && retries < MAX_RETRIES => retries += 1,
            Err(e) => return Err(e),
        }
        if filled >= buf.len() {
            return Ok(filled);
        }
        op = file.read(buf.slice(filled..buf.len()), pos + filled as u64);
    }
}

/// Fills `buf`, or fails with `UnexpectedEof`.
pub fn read_exact<F: File>(file: &F, buf: IoBuf, pos: u64) -> impl Future<Output = io::Result<()>> + use<F> {
    let len = buf.len();
    let read = read_up_to(file, buf, pos);
    async move { if read.await? < len { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) } }
}

/// Writes all of `vecs`; gives the list back for the next use.
pub fn write_all<F: File>(
    file: &F,
    vecs: IoVecs,
    pos: u64,
) -> impl Future<Output = (io::Result<()>, IoVecs)> + use<F> {
    let total = vecs.len();
    let first = file.write(vecs, pos);
    let file = file.clone();
    async move { finish_write(&file, first, total, pos).await }
}

/// Goes on with a write of `total` bytes whose first operation is `op`.
pub async fn finish_write<F: File>(
    file: &F,
    mut op: F::Op,
    total: usize,
    pos: u64,
) -> (io::Result<()>, IoVecs) {
    let (mut written, mut retries) = (0, 0);
    loop {
        let Done { result, mut vecs } = op.await;
        match result {
            Ok(n) if written + n >= total => return (Ok(()), vecs),
            Ok(0) => return (Err(io::ErrorKind::WriteZero.into()), vecs),
            Ok(n) => {
                written += n;
                retries = 0;
                vecs.advance(n);
            }
            Err(e) if transient(&e) && retries < MAX_RETRIES => retries += 1,
            Err(e) => return (Err(e), vecs),
        }
        op = file.write(vecs, pos + written as u64);
    }
}
