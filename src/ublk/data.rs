//! Where the data of a queue's requests is while the server has them.
//!
//! If the driver copies, each tag has a buffer for the largest request. If the server copies (USER_COPY), a request takes
//! as many pages as it has data from the queue's pool, and gives them back before its commit: memory is what runs at once
//! needs, up to the pool's size, and not queues x tags x the largest request. Requests that find no room wait in the order
//! in which they came, so that many small ones cannot keep a large one from ever finding its pages side by side.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Context, Poll, Waker};

use super::features::CopyMode;
use crate::limits::UBLK_POOL_BYTES;
use crate::storage::{Arena, BUF_ALIGN, IoBuf, PageRun};

/// The memory of one queue.
#[derive(Debug)]
pub(super) enum Data {
    /// One buffer for each tag: all of them, and the size of each.
    Tags(IoBuf, usize),
    /// The server copies; or it moves what it need not see, by way of an entry of the ring's buffer table for each tag.
    Pool(Pool, Vec<IoBuf>),
}

impl Data {
    /// Bytes that a queue needs: for `depth` tags, requests of up to `max_io` bytes.
    pub(super) fn bytes(copy: CopyMode, depth: u16, max_io: usize) -> usize {
        let (tags, all) = (usize::from(depth), usize::from(depth) * max_io);
        match copy {
            CopyMode::AtFetch | CopyMode::GetData => all,
            // A block for each tag: small requests never wait.
            CopyMode::UserCopy => UBLK_POOL_BYTES.max(tags * BUF_ALIGN).max(max_io).min(all),
        }
    }

    /// Shares `memory`, which has [`Data::bytes`], among the requests.
    pub(super) fn new(copy: CopyMode, memory: IoBuf, entries: Vec<IoBuf>, depth: u16, max_io: usize) -> Data {
        match copy {
            CopyMode::AtFetch | CopyMode::GetData => Data::Tags(memory, max_io),
            CopyMode::UserCopy => Data::Pool(Pool::new(memory, usize::from(depth)), entries),
        }
    }

    /// The buffer that the commands of `tag` name: the driver reads and writes it whenever the tag is not being served.
    pub(super) fn named(&self, tag: u16) -> Option<IoBuf> {
        match self {
            Data::Tags(all, size) => {
                let start = usize::from(tag) * size;
                Some(all.slice(start..start + size))
            }
            Data::Pool(_, entries) => entries.get(usize::from(tag)).cloned(),
        }
    }

    /// Where the kernel has put the `len` bytes of data of the request that `tag` has; `None`: nowhere.
    pub(super) fn unseen(&self, tag: u16, len: usize) -> Option<IoBuf> {
        match self {
            Data::Tags(..) => None,
            Data::Pool(_, entries) => {
                entries.get(usize::from(tag)).filter(|_| len > 0).map(|entry| entry.slice(0..len))
            }
        }
    }

    /// Memory for the `len` bytes of data of the request that `tag` has; for none an empty buffer.
    pub(super) async fn lend(&self, tag: u16, len: usize) -> Lent<'_> {
        match self {
            Data::Tags(all, size) => {
                let start = usize::from(tag) * size;
                Lent { buf: all.slice(start..start + len), pages: None }
            }
            Data::Pool(pool, _) => pool.lend(len).await,
        }
    }
}

/// Memory of a request; dropping it gives it back.
#[derive(Debug)]
pub(super) struct Lent<'a> {
    pub(super) buf: IoBuf,
    pages: Option<(&'a Pool, PageRun)>,
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        if let Some((pool, run)) = self.pages.take() {
            pool.give_back(run);
        }
    }
}

/// Memory that the requests of a queue share.
#[derive(Debug)]
pub(super) struct Pool {
    empty: IoBuf,
    pages: RefCell<Pages>,
}

#[derive(Debug)]
struct Pages {
    arena: Arena,
    /// Who waits, oldest first; each by its number.
    waiting: VecDeque<(u64, Waker)>,
    next: u64,
}

impl Pool {
    fn new(memory: IoBuf, tags: usize) -> Pool {
        let empty = memory.slice(0..0);
        let waiting = VecDeque::with_capacity(tags);
        Pool { empty, pages: RefCell::new(Pages { arena: Arena::new(memory), waiting, next: 0 }) }
    }

    /// Not to be dropped while it waits: its turn would never end. A tag's task runs to its end.
    async fn lend(&self, len: usize) -> Lent<'_> {
        if len == 0 {
            return Lent { buf: self.empty.clone(), pages: None };
        }
        let mut number = None;
        let (buf, run) = poll_fn(|cx| self.pages.borrow_mut().poll_take(len, &mut number, cx)).await;
        Lent { buf, pages: Some((self, run)) }
    }

    fn give_back(&self, run: PageRun) {
        let mut pages = self.pages.borrow_mut();
        pages.arena.give_back(run);
        pages.wake_first();
    }
}

impl Pages {
    fn poll_take(
        &mut self,
        len: usize,
        number: &mut Option<u64>,
        cx: &mut Context<'_>,
    ) -> Poll<(IoBuf, PageRun)> {
        let first = self.waiting.front().is_none_or(|(waiter, _)| Some(*waiter) == *number);
        if first && let Some(taken) = self.arena.take(len) {
            if number.is_some() {
                self.waiting.pop_front();
                // There may be room for the next one, too.
                self.wake_first();
            }
            return Poll::Ready(taken);
        }
        let own = number.get_or_insert(self.next);
        match self.waiting.iter_mut().find(|(waiter, _)| waiter == own) {
            Some((_, waker)) => waker.clone_from(cx.waker()),
            None => {
                self.waiting.push_back((*own, cx.waker().clone()));
                self.next += 1;
            }
        }
        Poll::Pending
    }

    fn wake_first(&self) {
        if let Some((_, waker)) = self.waiting.front() {
            waker.wake_by_ref();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;

    fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    fn pool(pages: usize) -> Data {
        Data::Pool(Pool::new(IoBuf::zeroed(pages * BUF_ALIGN), 4), Vec::new())
    }

    #[test]
    fn memory_is_bounded_when_the_server_copies() {
        let mib = 1 << 20;
        assert_eq!(Data::bytes(CopyMode::AtFetch, 64, mib), 64 * mib);
        assert_eq!(Data::bytes(CopyMode::UserCopy, 64, mib), UBLK_POOL_BYTES);
        assert_eq!(Data::bytes(CopyMode::UserCopy, 4, 8192), 4 * 8192);
        assert_eq!(Data::bytes(CopyMode::UserCopy, 4096, mib), 4096 * BUF_ALIGN);
        assert_eq!(Data::bytes(CopyMode::UserCopy, 2, 32 * mib), 32 * mib, "the largest request has room");
    }

    #[test]
    fn each_tag_has_a_buffer_of_its_own_when_the_driver_copies() {
        let data = Data::new(CopyMode::GetData, IoBuf::zeroed(4 * 8192), Vec::new(), 4, 8192);
        let buffers: Vec<IoBuf> = (0..4).filter_map(|tag| data.named(tag)).collect();
        assert_eq!(buffers.iter().map(IoBuf::len).collect::<Vec<_>>(), [8192; 4]);
        let Poll::Ready(lent) = poll(pin!(data.lend(2, 512))) else { panic!("it never waits") };
        assert_eq!((lent.buf.as_ptr(), lent.buf.len()), (buffers[2].as_ptr(), 512));
        assert!(pool(4).named(2).is_none());
    }

    #[test]
    fn each_tag_has_an_entry_for_what_nobody_sees() {
        let entries = IoBuf::entries(4, 8192);
        let data = Data::new(CopyMode::UserCopy, IoBuf::zeroed(4 * 8192), entries, 4, 8192);
        assert_eq!(data.named(3).and_then(|buf| buf.entry()), Some(3));
        assert_eq!(data.unseen(2, 512).map(|buf| (buf.entry(), buf.len())), Some((Some(2), 512)));
        assert!(data.unseen(2, 0).is_none(), "a flush has no pages");
        assert!(pool(4).unseen(2, 512).is_none());
    }

    #[test]
    fn who_finds_no_room_waits_for_its_turn() {
        let data = pool(4);
        let take = |tag, pages: usize| data.lend(tag, pages * BUF_ALIGN);
        let Poll::Ready(first) = poll(pin!(take(0, 3))) else { panic!("there is room") };
        let (mut large, mut small) = (pin!(take(1, 4)), pin!(take(2, 1)));
        assert!(poll(large.as_mut()).is_pending());
        assert!(poll(small.as_mut()).is_pending(), "one page is free, but it was not the first to come");
        assert!(poll(pin!(take(3, 0))).is_ready(), "a flush needs none");
        drop(first);
        assert!(poll(small.as_mut()).is_pending());
        let Poll::Ready(all) = poll(large) else { panic!("it is its turn") };
        assert!(poll(small.as_mut()).is_pending());
        drop(all);
        assert!(poll(small).is_ready());
        assert!(poll(pin!(take(0, 4))).is_ready(), "everything came back");
    }
}
