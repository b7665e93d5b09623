//! Whole-span zero ranges of the pending map: a discard of a terabyte is one entry.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::units::Seq;

/// Disjoint ranges of spans, each with the number of the record that zeroed it.
#[derive(Clone, Debug, Default)]
pub(super) struct ZeroRanges {
    /// First span -> (end, number).
    ranges: BTreeMap<u64, (u64, Seq)>,
}

impl ZeroRanges {
    /// The number that zeroed `span`.
    pub(super) fn get(&self, span: u64) -> Option<Seq> {
        let (_, &(end, seq)) = self.ranges.range(..=span).next_back()?;
        (span < end).then_some(seq)
    }

    /// Zeroes `spans` by `seq`, except where a higher number did (rule W2).
    pub(super) fn insert(&mut self, spans: Range<u64>, seq: Seq) {
        let mut next = spans.start;
        for (start, end, old) in self.take(&spans) {
            if old > seq {
                self.put(next..start, seq);
                self.put(start..end, old);
                next = end;
            }
        }
        self.put(next..spans.end, seq);
    }

    /// Removes the parts of existing ranges that lie in `spans`, and gives them in order.
    fn take(&mut self, spans: &Range<u64>) -> Vec<(u64, u64, Seq)> {
        let first = self.ranges.range(..=spans.start).next_back().map_or(spans.start, |(&s, _)| s);
        let hit: Vec<(u64, (u64, Seq))> = self
            .ranges
            .range(first..spans.end)
            .filter(|(_, (end, _))| *end > spans.start)
            .map(|(&s, &v)| (s, v))
            .collect();
        let mut inside = Vec::with_capacity(hit.len());
        for (start, (end, seq)) in hit {
            self.ranges.remove(&start);
            self.put(start..spans.start, seq);
            self.put(spans.end..end, seq);
            inside.push((start.max(spans.start), end.min(spans.end), seq));
        }
        inside
    }

    fn put(&mut self, spans: Range<u64>, seq: Seq) {
        if spans.start < spans.end {
            self.ranges.insert(spans.start, (spans.end, seq));
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    pub(super) fn clear(&mut self) {
        self.ranges.clear();
    }

    /// The ranges in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Range<u64>, Seq)> {
        self.ranges.iter().map(|(&start, &(end, seq))| (start..end, seq))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn agrees_with_one_number_per_span(ops in prop::collection::vec((0u64..40, 1u64..20, 1u64..1000), 1..60)) {
            let mut ranges = ZeroRanges::default();
            let mut model = [0u64; 64];
            for (start, len, seq) in ops {
                ranges.insert(start..start + len, Seq(seq));
                for cell in &mut model[start as usize..(start + len) as usize] {
                    *cell = (*cell).max(seq);
                }
                for (span, &seq) in model.iter().enumerate() {
                    prop_assert_eq!(ranges.get(span as u64), (seq > 0).then_some(Seq(seq)));
                }
            }
        }
    }
}
