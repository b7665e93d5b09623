//! What may stand in each sector of a disk, from what its clients know: a request took effect at one moment between its
//! sending and its reply, or, if there was none, at any time before the daemon died, or never.
//!
//! A sector that was written holds its own number and the number of the write, over and over: so a lost write, an old
//! one, a torn one and one in the wrong place all look different.

use std::collections::HashMap;
use std::ops::Range;

pub const SECTOR: usize = 512;
/// Sectors of a block.
pub const BLOCK: usize = 8;

/// The number of a write; its lowest bit says that it left zeros. [`BLANK`] is what was never written.
pub type Number = u64;
pub const BLANK: Number = 1;

fn leaves_zeros(number: Number) -> bool {
    number & 1 == 1
}

/// What write `number` leaves in `sector`.
pub fn stamp(sector: usize, number: Number) -> [u8; SECTOR] {
    let mut bytes = [0; SECTOR];
    if !leaves_zeros(number) {
        for word in bytes.chunks_exact_mut(16) {
            word[..8].copy_from_slice(&(sector as u64 ^ 0x5ec7_0123_4567_89ab).to_le_bytes());
            word[8..].copy_from_slice(&number.to_le_bytes());
        }
    }
    bytes
}

/// What a sector's bytes are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Found {
    Zeros,
    Write(Number),
    /// The stamp of another sector.
    Misplaced {
        from: u64,
        number: Number,
    },
    Garbage,
}

impl Found {
    fn of(sector: usize, bytes: &[u8]) -> Found {
        if bytes == [0; SECTOR] {
            return Found::Zeros;
        }
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        let (from, number) = (word(0) ^ 0x5ec7_0123_4567_89ab, word(8));
        if bytes == stamp(sector, number) {
            return Found::Write(number);
        }
        let whole = bytes[16..] == bytes[..SECTOR - 16];
        if whole { Found::Misplaced { from, number } } else { Found::Garbage }
    }

    fn is(self, number: Number) -> bool {
        match self {
            Found::Zeros => leaves_zeros(number),
            Found::Write(found) => found == number,
            Found::Misplaced { .. } | Found::Garbage => false,
        }
    }
}

/// What of a request happens as a whole or not at all.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// All of it.
    Whole,
    /// What it changes of each block.
    Block,
}

/// A request that changes the disk. Times are ticks of the oracle's clock.
#[derive(Clone, Debug)]
struct Change {
    sectors: Range<usize>,
    sent: u64,
    /// `None`: not answered.
    answered: Option<u64>,
    part: Part,
}

/// A read under way, and what each of its sectors may give.
struct Read {
    first: usize,
    allowed: Vec<Vec<Number>>,
}

/// What is known of a disk.
pub struct Oracle {
    /// What each sector may hold: the writes that no answered write is known to have followed.
    sectors: Vec<Vec<Number>>,
    /// The changes since the disk was last looked at, the first of them with number `first`.
    changes: Vec<Change>,
    first: Number,
    reads: HashMap<u64, Read>,
    clock: u64,
    next_read: u64,
}

/// How a look at the whole disk ended.
#[derive(Clone, Copy, Default, Debug)]
pub struct Verified {
    /// Changes that were answered since the last look.
    pub answered: u64,
    /// Changes that were not.
    pub unanswered: u64,
}

impl Oracle {
    /// A disk with `content` in each of its sectors.
    pub fn new(content: Vec<Number>) -> Oracle {
        let sectors: Vec<_> = content.into_iter().map(|number| vec![number]).collect();
        let newest = sectors.iter().map(|s| s[0]).max().unwrap_or(0);
        Oracle {
            sectors,
            changes: Vec::new(),
            first: (newest | 1) + 1,
            reads: HashMap::new(),
            clock: 0,
            next_read: 0,
        }
    }

    pub fn len(&self) -> usize {
        self.sectors.len()
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn change(&self, number: Number) -> Option<&Change> {
        self.changes.get(usize::try_from(number.checked_sub(self.first)? / 2).unwrap())
    }

    fn sent(&self, number: Number) -> u64 {
        self.change(number).map_or(0, |change| change.sent)
    }

    /// What stood there at the last look was answered before all else.
    fn answered(&self, number: Number) -> u64 {
        self.change(number).map_or(0, |change| change.answered.unwrap_or(u64::MAX))
    }

    /// A change is about to be sent.
    pub fn send(&mut self, sectors: Range<usize>, zeros: bool, part: Part) -> Number {
        let number = self.first + 2 * self.changes.len() as u64 + u64::from(zeros);
        let sent = self.tick();
        for sector in sectors.clone() {
            self.sectors[sector].push(number);
        }
        for read in self.reads.values_mut() {
            let end = read.first + read.allowed.len();
            for sector in sectors.start.max(read.first)..sectors.end.min(end) {
                read.allowed[sector - read.first].push(number);
            }
        }
        self.changes.push(Change { sectors, sent, answered: None, part });
        number
    }

    /// Change `number` was answered: whatever was answered before it was sent is gone.
    pub fn answer(&mut self, number: Number) {
        let now = self.tick();
        let index = usize::try_from((number - self.first) / 2).unwrap();
        self.changes[index].answered = Some(now);
        let Change { sectors, sent, .. } = self.changes[index].clone();
        for sector in sectors {
            let mut left = std::mem::take(&mut self.sectors[sector]);
            left.retain(|&other| self.answered(other) >= sent);
            self.sectors[sector] = left;
        }
    }

    /// A read is about to be sent.
    pub fn send_read(&mut self, sectors: Range<usize>) -> u64 {
        self.next_read += 1;
        let allowed = self.sectors[sectors.clone()].to_vec();
        self.reads.insert(self.next_read, Read { first: sectors.start, allowed });
        self.next_read
    }

    /// Bytes that read `id` will be answered with.
    pub fn read_len(&self, id: u64) -> usize {
        self.reads[&id].allowed.len() * SECTOR
    }

    /// A read was answered.
    pub fn answer_read(&mut self, id: u64, bytes: &[u8]) -> Result<(), String> {
        let read = self.reads.remove(&id).unwrap();
        for (i, (bytes, allowed)) in bytes.chunks_exact(SECTOR).zip(&read.allowed).enumerate() {
            let sector = read.first + i;
            let found = Found::of(sector, bytes);
            if !allowed.iter().any(|&number| found.is(number)) {
                return Err(format!("a read: {}", self.complaint(sector, found, allowed)));
            }
        }
        Ok(())
    }

    fn complaint(&self, sector: usize, found: Found, allowed: &[Number]) -> String {
        let told: Vec<String> = allowed.iter().map(|&number| self.describe(number)).collect();
        let found_change = match found {
            Found::Write(number) => self.describe(number),
            _ => String::new(),
        };
        let block = sector / BLOCK;
        format!("sector {sector} of block {block} has {found:?} {found_change}, allowed: {}", told.join(", "))
    }

    fn describe(&self, number: Number) -> String {
        match self.change(number) {
            Some(Change { sectors, sent, answered, .. }) => {
                format!("write {number} of sectors {sectors:?} (sent {sent}, answered {answered:?})")
            }
            None => format!("write {number} of an earlier round"),
        }
    }

    /// Judges the whole disk after the daemon's end; from now on it holds what was found.
    pub fn judge(&mut self, disk: &[u8]) -> Result<Verified, String> {
        assert_eq!(disk.len(), self.len() * SECTOR);
        let mut now = Vec::with_capacity(self.len());
        for (sector, bytes) in disk.chunks_exact(SECTOR).enumerate() {
            let found = Found::of(sector, bytes);
            let allowed = &self.sectors[sector];
            match allowed.iter().rev().find(|&&number| found.is(number)) {
                Some(&number) => now.push(number),
                None => return Err(self.complaint(sector, found, allowed)),
            }
        }
        let unanswered: Vec<usize> =
            (0..self.changes.len()).filter(|&i| self.changes[i].answered.is_none()).collect();
        for &index in &unanswered {
            self.judge_parts(index, &now)?;
        }
        let unanswered = unanswered.len() as u64;
        let verified = Verified { answered: self.changes.len() as u64 - unanswered, unanswered };
        *self = Oracle { next_read: self.next_read, first: self.next_number(), ..Oracle::new(now) };
        Ok(verified)
    }

    fn next_number(&self) -> Number {
        self.first + 2 * self.changes.len() as u64
    }

    /// What was in flight when the daemon died is there as a whole or not at all.
    fn judge_parts(&self, index: usize, now: &[Number]) -> Result<(), String> {
        let Change { sectors, part, .. } = &self.changes[index];
        let pure = self.first + 2 * index as u64;
        let mut first = sectors.start;
        while first < sectors.end {
            let end = match part {
                Part::Whole => sectors.end,
                Part::Block => sectors.end.min((first / BLOCK + 1) * BLOCK),
            };
            self.judge_part(pure, first..end, now)?;
            first = end;
        }
        Ok(())
    }

    fn judge_part(&self, pure: Number, sectors: Range<usize>, now: &[Number]) -> Result<(), String> {
        // A sector that it has reached, and one that it has not.
        let (mut there, mut missing) = (None, None);
        for sector in sectors {
            match self.is_there(pure, sector, now[sector]) {
                Some(true) => there = Some(sector),
                Some(false) => missing = Some(sector),
                None => {}
            }
        }
        match (there, missing) {
            (Some(there), Some(missing)) => {
                let what = self.describe(pure);
                Err(format!("{what} is torn: sector {there} has it, sector {missing} does not"))
            }
            _ => Ok(()),
        }
    }

    /// Whether the unanswered change `pure` (without its lowest bit) has reached `sector`, which holds `found`; `None` if
    /// that does not show.
    fn is_there(&self, pure: Number, sector: usize, found: Number) -> Option<bool> {
        let mine = |number: Number| number & !1 == pure;
        // Zeros look the same whoever wrote them.
        let alike = |number: Number| number == found || (leaves_zeros(number) && leaves_zeros(found));
        let sent = self.sent(pure);
        let mut makers = self.sectors[sector].iter().copied().filter(|&number| alike(number));
        match mine(found) {
            true => makers.all(mine).then_some(true),
            // Another one that may have followed it hides it.
            false => makers.all(|number| !mine(number) && self.answered(number) < sent).then_some(false),
        }
    }

    /// What each sector holds; known once the disk was judged.
    pub fn content(&self) -> Vec<Number> {
        self.sectors.iter().map(|allowed| allowed[0]).collect()
    }
}

/// Compares a disk that nobody writes to with what it must hold.
pub fn compare(content: &[Number], disk: &[u8]) -> Result<(), String> {
    assert_eq!(disk.len(), content.len() * SECTOR);
    let sectors = disk.chunks_exact(SECTOR).enumerate().map(|(sector, bytes)| Found::of(sector, bytes));
    for (sector, (found, number)) in sectors.zip(content).enumerate() {
        if !found.is(*number) {
            return Err(format!("sector {sector} has {found:?} instead of write {number}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(content: &[Number]) -> Vec<u8> {
        content.iter().enumerate().flat_map(|(sector, &number)| stamp(sector, number)).collect()
    }

    /// A disk of two blocks with one answered write over both.
    fn written() -> (Oracle, Number) {
        let mut oracle = Oracle::new(vec![BLANK; 16]);
        let number = oracle.send(0..16, false, Part::Whole);
        oracle.answer(number);
        (oracle, number)
    }

    #[test]
    fn an_answered_write_must_be_there() {
        let (mut oracle, number) = written();
        assert!(oracle.judge(&disk(&[BLANK; 16])).unwrap_err().contains("has Zeros"));
        let verified = oracle.judge(&disk(&[number; 16])).unwrap();
        assert_eq!((verified.answered, verified.unanswered), (1, 0));
        let older = oracle.send(0..8, false, Part::Whole);
        oracle.answer(older);
        assert!(oracle.judge(&disk(&[number; 16])).is_err());
    }

    #[test]
    fn a_write_in_flight_is_there_or_not_but_never_torn() {
        let (mut oracle, old) = written();
        let new = oracle.send(0..16, false, Part::Whole);
        let torn = [[old; 8], [new; 8]].concat();
        assert!(oracle.judge(&disk(&torn)).unwrap_err().contains("torn"));
        assert_eq!(oracle.judge(&disk(&[new; 16])).unwrap().unanswered, 1);
        assert!(oracle.judge(&disk(&[old; 16])).is_err(), "it was seen");
    }

    #[test]
    fn of_two_at_once_either_may_win() {
        for winner in 0..2 {
            let (mut oracle, _) = written();
            let both = [oracle.send(0..8, false, Part::Whole), oracle.send(0..8, true, Part::Whole)];
            both.into_iter().for_each(|number| oracle.answer(number));
            let mut content = oracle.content();
            content[..8].fill(both[winner]);
            oracle.judge(&disk(&content)).unwrap();
        }
    }

    #[test]
    fn a_read_sees_what_was_there_at_some_moment_of_it() {
        let (mut oracle, old) = written();
        let reads = [0; 3].map(|_| oracle.send_read(0..1));
        let new = oracle.send(0..8, false, Part::Whole);
        oracle.answer(new);
        oracle.answer_read(reads[0], &stamp(0, old)).unwrap();
        oracle.answer_read(reads[1], &stamp(0, new)).unwrap();
        assert!(oracle.answer_read(reads[2], &stamp(0, BLANK)).is_err());
        let late = oracle.send_read(0..1);
        assert!(oracle.answer_read(late, &stamp(0, old)).unwrap_err().contains("sector 0"));
    }

    #[test]
    fn garbage_and_misplaced_sectors_are_told_apart() {
        let (mut oracle, number) = written();
        let mut bytes = disk(&[number; 16]);
        bytes[100] ^= 1;
        assert!(oracle.judge(&bytes).unwrap_err().contains("Garbage"));
        bytes[..SECTOR].copy_from_slice(&stamp(5, number));
        assert!(oracle.judge(&bytes).unwrap_err().contains("Misplaced { from: 5"));
    }

    #[test]
    fn zeros_in_flight_over_zeros_hide_nothing() {
        let mut oracle = Oracle::new(vec![BLANK; 16]);
        oracle.send(0..16, true, Part::Whole);
        oracle.judge(&disk(&[BLANK; 16])).unwrap();
    }
}
