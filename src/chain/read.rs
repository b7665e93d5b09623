//! Reading: ask where, move the bytes, verify them.

use smallvec::SmallVec;

use super::layers::Chain;
use super::queue::ImageQueue;
use crate::error::{Error, Kind, Result};
use crate::map::{LayerTag, Mapped, RunSource};
use crate::storage::{BUF_ALIGN, File, IoBuf, Storage, finish_read};
use crate::units::{BLOCK, BLOCK_SIZE, PBlock, SPAN_BLOCKS, VBlock};

/// Consecutive blocks of a request that come from one place.
#[derive(Clone, Copy, Debug)]
struct Segment {
    /// First block, counted from the request's.
    at: usize,
    blocks: usize,
    source: Source,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Zero,
    Base,
    Data(LayerTag, PBlock),
}

/// Where a request's blocks are. Checksums stand beside data blocks in request order.
#[derive(Debug, Default)]
struct Plan {
    segments: SmallVec<[Segment; 4]>,
    crcs: SmallVec<[u32; 32]>,
}

impl Plan {
    fn push(&mut self, at: usize, blocks: usize, source: Source) {
        if let Some(last) = self.segments.last_mut() {
            let joins = match (last.source, source) {
                (Source::Data(a, p), Source::Data(b, q)) => a == b && p.plus(last.blocks as u64) == q,
                (a, b) => a == b,
            };
            if joins {
                last.blocks += blocks;
                return;
            }
        }
        self.segments.push(Segment { at, blocks, source });
    }
}

/// Blocks in pending maps: of which layer, and what.
type PendingBlocks = SmallVec<[(LayerTag, Mapped); 32]>;

/// A segment whose read runs.
type Running<'a, S> = (&'a Segment, <<S as Storage>::File as File>::Op);

impl<S: Storage> ImageQueue<S> {
    /// Fills `buf`, whole blocks, from `first` on. The caller has checked the range.
    ///
    /// # Errors
    /// `Corrupt` if a block does not match its checksum; `Io`; always with file and offset.
    pub(super) async fn read_blocks(&self, first: VBlock, buf: &IoBuf) -> Result<()> {
        debug_assert!(buf.len().is_multiple_of(BLOCK_SIZE));
        if !(buf.as_ptr() as usize).is_multiple_of(BUF_ALIGN) {
            // O_DIRECT needs aligned memory.
            let bounce = IoBuf::zeroed(buf.len());
            self.read_aligned(first, &bounce).await?;
            buf.copy_buf(0, &bounce);
            return Ok(());
        }
        self.read_aligned(first, buf).await
    }

    /// As [`ImageQueue::read_blocks`], into memory that only the kernel reaches. `false`: some of it is zeros, has checksums,
    /// or lies so that the host refuses the memory.
    pub(super) async fn read_blocks_unseen(&self, first: VBlock, buf: &IoBuf) -> Result<bool> {
        let _guard = self.image.readers.enter();
        loop {
            let chain = self.here();
            let plan = chain.plan(first, buf.len() / BLOCK_SIZE).await?;
            if !chain.knows(&plan) {
                continue;
            }
            if !chain.can_move_unseen(first, &plan) {
                return Ok(false);
            }
            return match chain.move_bytes(first, buf, &plan).await {
                Err(e) if e.kind() == Kind::Io => Ok(false),
                moved => moved.map(|()| true),
            };
        }
    }

    async fn read_aligned(&self, first: VBlock, buf: &IoBuf) -> Result<()> {
        // R(b): from before the look-up until the bytes are here, nothing that was looked up is reused.
        let _guard = self.image.readers.enter();
        loop {
            let chain = self.here();
            let plan = chain.plan(first, buf.len() / BLOCK_SIZE).await?;
            // Between two spans a snapshot was taken, sealed, and another head folded into what the cache gives: one
            // round of that for each turn.
            if !chain.knows(&plan) {
                continue;
            }
            chain.move_bytes(first, buf, &plan).await?;
            return chain.verify(buf, &plan);
        }
    }
}

impl<S: Storage> Chain<S> {
    /// True if all layers that the plan names are of this chain.
    fn knows(&self, plan: &Plan) -> bool {
        plan.segments.iter().all(|segment| match segment.source {
            Source::Data(tag, _) => self.layer(tag).is_some(),
            Source::Zero | Source::Base => true,
        })
    }

    /// Looks every block up: the pending maps first, then the span cache.
    async fn plan(&self, first: VBlock, blocks: usize) -> Result<Plan> {
        let mut plan = Plan::default();
        let mut done = 0;
        while done < blocks {
            let vblock = first.plus(done as u64);
            let room = (SPAN_BLOCKS - u64::from(vblock.in_span())) as usize;
            let count = room.min(blocks - done);
            self.plan_in_span(vblock, done, count, &mut plan).await?;
            done += count;
        }
        Ok(plan)
    }

    async fn plan_in_span(&self, vblock: VBlock, at: usize, count: usize, plan: &mut Plan) -> Result<()> {
        let (mapped, all) = self.look_up_pending(vblock, count);
        let runs = if all { None } else { Some(self.span(vblock.span()).await?) };
        let mut i = 0;
        while i < count {
            match (mapped[i].1, &runs) {
                (Mapped::Zero, _) => plan.push(at + i, 1, Source::Zero),
                (Mapped::Data { pblock, crc }, _) => {
                    plan.push(at + i, 1, Source::Data(mapped[i].0, pblock));
                    plan.crcs.push(crc);
                }
                (Mapped::Absent, None) => unreachable!("not all blocks were found, so the span was resolved"),
                (Mapped::Absent, Some(runs)) => {
                    let offset = usize::from(vblock.in_span()) + i;
                    let index = runs.runs.partition_point(|r| usize::from(r.offset) <= offset) - 1;
                    let run = runs.runs[index];
                    let skip = offset - usize::from(run.offset);
                    let absent = mapped[i..].iter().take_while(|m| m.1 == Mapped::Absent).count();
                    let blocks = absent.min(usize::from(run.blocks) - skip);
                    match run.source {
                        RunSource::Zero => plan.push(at + i, blocks, Source::Zero),
                        RunSource::Base => plan.push(at + i, blocks, Source::Base),
                        RunSource::Data { layer, pblock, crc_index } => {
                            plan.push(at + i, blocks, Source::Data(layer, pblock.plus(skip as u64)));
                            let from = usize::from(crc_index) + skip;
                            plan.crcs.extend_from_slice(&runs.crcs[from..from + blocks]);
                        }
                    }
                    i += blocks;
                    continue;
                }
            }
            i += 1;
        }
        Ok(())
    }

    /// What the pending maps hold of consecutive blocks of one span, each with its layer; `true` if all of them are there.
    fn look_up_pending(&self, vblock: VBlock, count: usize) -> (PendingBlocks, bool) {
        let top = self.top().reader.tag;
        let mut found: PendingBlocks = SmallVec::from_elem((top, Mapped::Absent), count);
        let mut all = false;
        for head in [&self.head, &self.sealing].into_iter().flatten() {
            if all {
                break;
            }
            let mut mapped: SmallVec<[Mapped; 32]> = SmallVec::from_elem(Mapped::Absent, count);
            all = head.pending.lookup(vblock, &mut mapped);
            let open = found.iter_mut().zip(mapped).filter(|(have, _)| have.1 == Mapped::Absent);
            open.for_each(|(have, new)| *have = (head.tag(), new));
        }
        all |= self.sealing.is_some() && found.iter().all(|have| have.1 != Mapped::Absent);
        (found, all)
    }

    /// Starts all reads at once, then waits for them.
    async fn move_bytes(&self, first: VBlock, buf: &IoBuf, plan: &Plan) -> Result<()> {
        let mut ops: SmallVec<[Running<'_, S>; 4]> = SmallVec::new();
        for segment in &plan.segments {
            let part = segment.part(buf);
            match self.position(first, segment) {
                None => part.zero(0..part.len()),
                Some((file, pos)) => ops.push((segment, file.read(part, pos))),
            }
        }
        let mut result = Ok(());
        for (segment, op) in ops {
            let Some((file, pos)) = self.position(first, segment) else { continue };
            let part = segment.part(buf);
            let read = finish_read(file, op, part.clone(), pos).await;
            match read {
                Ok(n) if n == part.len() => {}
                Ok(n) if segment.source == Source::Base => part.zero(n..part.len()),
                Ok(n) => {
                    result = Err(Error::corrupt("the file ends within a data block")
                        .at(self.path_of(segment.source))
                        .offset(pos + n as u64));
                }
                Err(e) => {
                    result = Err(Error::io("read data", e).at(self.path_of(segment.source)).offset(pos))
                }
            }
        }
        result
    }

    /// True if nobody need see what the plan reads, or make up what is not there.
    fn can_move_unseen(&self, first: VBlock, plan: &Plan) -> bool {
        plan.segments.iter().all(|segment| match segment.source {
            Source::Zero => false,
            Source::Base => {
                let end = first.plus((segment.at + segment.blocks) as u64).pos();
                self.base.as_ref().is_some_and(|base| end <= base.size)
            }
            Source::Data(tag, _) => self.layer(tag).is_some_and(|layer| !layer.reader.checksums),
        })
    }

    fn position(&self, first: VBlock, segment: &Segment) -> Option<(&S::File, u64)> {
        match segment.source {
            Source::Zero => None,
            Source::Base => {
                let base = self.base.as_ref()?;
                Some((&base.file, (first.0 + segment.at as u64) * BLOCK))
            }
            Source::Data(tag, pblock) => {
                let layer = self.layer(tag).expect("the plan is of this chain");
                Some((&layer.reader.file, pblock.pos()))
            }
        }
    }

    fn path_of(&self, source: Source) -> &std::path::Path {
        match source {
            Source::Data(tag, _) => self.layer(tag).map_or(self.path(), |layer| &layer.reader.path),
            _ => self.base_path.as_deref().unwrap_or(self.path()),
        }
    }

    fn verify(&self, buf: &IoBuf, plan: &Plan) -> Result<()> {
        let mut crcs = plan.crcs.iter();
        for segment in &plan.segments {
            let Source::Data(tag, pblock) = segment.source else { continue };
            if !self.layer(tag).is_some_and(|layer| layer.reader.checksums) {
                crcs.by_ref().take(segment.blocks).for_each(drop);
                continue;
            }
            for i in 0..segment.blocks {
                let start = (segment.at + i) * BLOCK_SIZE;
                let sum = buf.slice(start..start + BLOCK_SIZE).crc32(0);
                let Some(&expected) = crcs.next() else { unreachable!("one checksum per data block") };
                if sum != expected {
                    let text = format!("data block checksum is {sum:08x}, the map says {expected:08x}");
                    let offset = pblock.plus(i as u64).pos();
                    return Err(Error::corrupt(text).at(self.path_of(segment.source)).offset(offset));
                }
            }
        }
        Ok(())
    }
}

impl Segment {
    fn part(&self, buf: &IoBuf) -> IoBuf {
        buf.slice(self.at * BLOCK_SIZE..(self.at + self.blocks) * BLOCK_SIZE)
    }
}
