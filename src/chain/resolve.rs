//! Resolving a span: which layer, or the base, or nothing, holds each of its blocks.

use std::sync::Arc;

use super::layers::Chain;
use crate::error::Result;
use crate::format::Place;
use crate::map::{LayerTag, Mapped, PendingMap, Run, RunSource, SpanRuns};
use crate::storage::Storage;
use crate::units::{PBlock, SPAN_BLOCKS, Span, VBlock, blocks_for};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Cell {
    Open,
    Zero,
    Base,
    Data(LayerTag, PBlock, u32),
}

impl<S: Storage> Chain<S> {
    /// The runs of `span` below the pending map, from the cache or by asking the layers from the top down.
    pub(super) async fn span(&self, span: Span) -> Result<Arc<SpanRuns>> {
        if let Some(runs) = self.caches.spans.get(span) {
            return Ok(runs);
        }
        // Read before any root: a checkpoint in between makes the fill void.
        let generation = self.caches.spans.generation();
        let runs = Arc::new(self.resolve(span).await?);
        self.caches.spans.fill(span, runs.clone(), generation);
        Ok(runs)
    }

    async fn resolve(&self, span: Span) -> Result<SpanRuns> {
        let first = span.first();
        let mut cells = [Cell::Open; SPAN_BLOCKS as usize];
        let mut open = cells.len();
        let mut end = first.plus(SPAN_BLOCKS);
        for layer in &self.layers {
            // A parent may be smaller than its child: behind its end the disk it holds reads as zeros, whatever lies
            // below it.
            end = end.min(VBlock(blocks_for(layer.size)));
            let tag = layer.reader.tag;
            if let Some(pending) = &layer.pending {
                open -= fill_from_pending(pending, tag, first, end, &mut cells);
            }
            let fill = |vblock: VBlock, blocks: u32, place: Place, crcs: &[u32]| {
                for i in 0..u64::from(blocks) {
                    let cell = &mut cells[(vblock.0 + i - first.0) as usize];
                    if *cell != Cell::Open {
                        continue;
                    }
                    open -= 1;
                    *cell = match place {
                        Place::Zero => Cell::Zero,
                        Place::Data(p) => Cell::Data(tag, p.plus(i), crcs[i as usize]),
                    };
                }
            };
            if first < end {
                layer.reader.extents(first..end, fill).await?;
            }
            if open == 0 {
                break;
            }
        }
        if open > 0 {
            let base_end = self.base.as_ref().map_or(0, |b| blocks_for(b.size)).min(end.0);
            for (i, cell) in cells.iter_mut().enumerate().filter(|(_, c)| **c == Cell::Open) {
                *cell = if first.0 + (i as u64) < base_end { Cell::Base } else { Cell::Zero };
            }
        }
        Ok(compress(&cells))
    }
}

/// What the unfolded journal of a layer that is open read-only maps. Gives the blocks filled.
fn fill_from_pending(
    pending: &PendingMap,
    tag: LayerTag,
    first: VBlock,
    end: VBlock,
    cells: &mut [Cell; SPAN_BLOCKS as usize],
) -> usize {
    let count = end.0.saturating_sub(first.0) as usize;
    let mut mapped = [Mapped::Absent; SPAN_BLOCKS as usize];
    pending.lookup(first, &mut mapped[..count]);
    let mut filled = 0;
    for (cell, mapped) in cells.iter_mut().zip(&mapped[..count]).filter(|(c, _)| **c == Cell::Open) {
        *cell = match *mapped {
            Mapped::Absent => continue,
            Mapped::Zero => Cell::Zero,
            Mapped::Data { pblock, crc } => Cell::Data(tag, pblock, crc),
        };
        filled += 1;
    }
    filled
}

fn compress(cells: &[Cell; SPAN_BLOCKS as usize]) -> SpanRuns {
    let mut out = SpanRuns::default();
    for (i, cell) in cells.iter().enumerate() {
        let source = match *cell {
            Cell::Open | Cell::Zero => RunSource::Zero,
            Cell::Base => RunSource::Base,
            Cell::Data(layer, pblock, crc) => {
                out.crcs.push(crc);
                RunSource::Data { layer, pblock, crc_index: (out.crcs.len() - 1) as u8 }
            }
        };
        if let Some(last) = out.runs.last_mut()
            && follows(last, source)
        {
            last.blocks += 1;
            continue;
        }
        out.runs.push(Run { offset: i as u8, blocks: 1, source });
    }
    out.runs.shrink_to_fit();
    out.crcs.shrink_to_fit();
    out
}

fn follows(last: &Run, next: RunSource) -> bool {
    match (last.source, next) {
        (RunSource::Zero, RunSource::Zero) | (RunSource::Base, RunSource::Base) => true,
        (RunSource::Data { layer: a, pblock: p, .. }, RunSource::Data { layer: b, pblock: q, .. }) => {
            a == b && p.plus(u64::from(last.blocks)) == q
        }
        _ => false,
    }
}
