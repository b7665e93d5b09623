//! What may be on the disk.
//!
//! Every sector that a request writes carries the request's number, so a stale, lost or misplaced sector is told
//! apart. A request has a time at which it was issued and one at which it was acknowledged. A sector may show a value
//! unless a request that *must* be there was issued after that value was acknowledged. What must be there:
//! after the death of the process every acknowledged request; after a power loss every request that a completed
//! FLUSH or FUA covers, and, for each later request that is there, all that were acknowledged before it was issued.
//!
//! A resize is a change like others: it zeroes everything behind the smaller one of both ends, and the size that is found
//! tells whether it is there. It is acknowledged when it is durable.
//!
//! A rollback, during which no requests run, begins an epoch: the disk shows the snapshot, and only later requests change
//! that. One that was not acknowledged has been done, or not.
//!
//! A snapshot that was acknowledged shows what the disk showed when it was taken, for ever; one that was broken off is
//! absent or exact. One that was taken while requests were running shows the disk of one moment between its beginning and
//! its end.

use std::cell::RefCell;

pub const SECTOR: usize = 512;

/// A request that changed sectors.
#[derive(Clone, Debug)]
pub struct Change {
    pub first: usize,
    pub sectors: usize,
    /// Its sectors read as zeros.
    pub zero: bool,
    pub issued: u64,
    pub acked: Option<u64>,
    /// It failed: it may be there or not.
    pub failed: bool,
    /// A flush that covers it was acknowledged then.
    pub durable: Option<u64>,
    /// Not promised to be all or nothing: it was several writes.
    pub split: bool,
    /// The sectors that the disk has from then on.
    pub size: Option<usize>,
}

/// What a sector shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seen {
    Zero,
    Base,
    Change(u32),
}

/// A snapshot.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub name: String,
    /// What it shows. Of one that was taken while requests were running it is known once it was seen for the first time.
    pub seen: RefCell<Option<Vec<Seen>>>,
    pub issued: u64,
    pub acked: Option<u64>,
}

/// What the disk showed at a time, and what has changed it since then.
#[derive(Clone, Debug)]
struct Epoch {
    begun: u64,
    acked: Option<u64>,
    disk: Vec<Seen>,
}

impl Epoch {
    /// What `sector` showed; behind the end zeros.
    fn at(&self, sector: usize) -> Seen {
        self.disk.get(sector).copied().unwrap_or(Seen::Zero)
    }
}

/// What was found after a crash.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Observed {
    pub disk: Vec<Seen>,
    /// The snapshots that are there, by name.
    pub snapshots: Vec<(String, Vec<Seen>)>,
}

#[derive(Clone, Debug)]
pub struct History {
    pub now: u64,
    pub changes: Vec<Change>,
    pub snapshots: Vec<Snapshot>,
    /// A read that was issued at this time showed this change in this sector.
    observed: Vec<(usize, usize, u64)>,
    /// The most sectors that the disk has had.
    pub sectors: usize,
    /// The beginning, and each rollback.
    epochs: Vec<Epoch>,
}

/// Which resizes are there, as the size of the disk tells.
#[derive(Clone, Copy)]
struct Resizes {
    /// Those that were issued up to this time are.
    certain: u64,
    /// Those that were issued later are not.
    possible: u64,
}

impl Resizes {
    /// The size was not looked at.
    const UNKNOWN: Resizes = Resizes { certain: 0, possible: u64::MAX };

    /// Whether a change may be there at all.
    fn allow(self, c: &Change) -> bool {
        c.size.is_none() || c.issued <= self.possible
    }

    /// Whether a change is there for sure.
    fn prove(self, c: &Change) -> bool {
        c.size.is_some() && !c.failed && c.issued <= self.certain
    }
}

/// The bytes of `sector` as written by change `id`.
pub fn stamp(sector: usize, id: usize) -> [u8; SECTOR] {
    let mut bytes = [0; SECTOR];
    for (i, word) in bytes.chunks_exact_mut(16).enumerate() {
        word[..8].copy_from_slice(&((sector as u64) << 32 | id as u64).to_le_bytes());
        word[8..].copy_from_slice(&(i as u64 + 0xC0D1).to_le_bytes());
    }
    bytes
}

/// The bytes of `sector` of the base.
pub fn base_stamp(sector: usize) -> [u8; SECTOR] {
    stamp(sector, 0xFFFF_FFFF)
}

/// What `bytes`, read at `sector`, are.
pub fn identify(sector: usize, bytes: &[u8]) -> Result<Seen, String> {
    let word = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    if word == 0 && bytes.iter().all(|&b| b == 0) {
        return Ok(Seen::Zero);
    }
    let (at, id) = ((word >> 32) as usize, (word & 0xFFFF_FFFF) as u32);
    if bytes != stamp(at, id as usize) {
        return Err(format!("sector {sector} holds garbage: {:02x?}…", &bytes[..16]));
    }
    if at != sector {
        return Err(format!("sector {sector} holds what belongs to sector {at} (change {id})"));
    }
    Ok(if id == 0xFFFF_FFFF { Seen::Base } else { Seen::Change(id) })
}

/// What a whole disk shows.
pub fn identify_all(bytes: &[u8]) -> Result<Vec<Seen>, String> {
    bytes.chunks_exact(SECTOR).enumerate().map(|(i, s)| identify(i, s)).collect()
}

/// For each sector, what decides whether a value may be there.
struct Judge<'a> {
    history: &'a History,
    epoch: &'a Epoch,
    now: u64,
    /// When the newest change that must be there was issued, and which it is.
    newest: Vec<(u64, usize)>,
    /// When a read last showed a change that must be there, and which: what was in place before lies behind it.
    observed: Vec<(u64, usize)>,
    /// When the last change that zeroes the sector was in place for sure.
    zeroed: Vec<u64>,
}

impl<'a> Judge<'a> {
    fn new(
        history: &'a History,
        epoch: &'a Epoch,
        now: u64,
        resizes: Resizes,
        must: impl Fn(&Change) -> bool,
    ) -> Judge<'a> {
        let must = |c: &Change| must(c) || resizes.prove(c);
        let mut newest = vec![(0, 0); history.sectors];
        let zero = |s: usize| if epoch.at(s) == Seen::Zero { epoch.begun } else { 0 };
        let mut zeroed: Vec<u64> = (0..history.sectors).map(zero).collect();
        let there = |c: &Change| history.is_in(epoch, c.issued) && c.issued <= now && resizes.allow(c);
        for (id, c) in history.changes.iter().enumerate().filter(|(_, c)| there(c)) {
            for sector in c.range(history.sectors) {
                if must(c) {
                    newest[sector] = newest[sector].max((c.issued, id));
                }
                if c.zero {
                    zeroed[sector] = zeroed[sector].max(c.in_place(now));
                }
            }
        }
        let mut observed = vec![(0, 0); history.sectors];
        let shown = |at: u64| at <= now && history.is_in(epoch, at);
        for (sector, id, at) in history.observed.iter().copied().filter(|(.., at)| shown(*at)) {
            if must(&history.changes[id]) {
                observed[sector] = observed[sector].max((at, id));
            }
        }
        Judge { history, epoch, now, newest, observed, zeroed }
    }

    /// May `sector` show `seen`?
    fn allowed(&self, sector: usize, seen: Seen) -> Result<(), String> {
        let history = self.history;
        // When the value was in place for sure: anything that must be there and was issued later hides it.
        let end = match seen {
            Seen::Base | Seen::Change(_) if self.epoch.at(sector) == seen => self.epoch.begun,
            Seen::Base => return Err(format!("sector {sector} shows a base that it does not have")),
            Seen::Change(id) => {
                let change = history.changes.get(id as usize);
                let mine =
                    |c: &&Change| history.is_in(self.epoch, c.issued) && c.issued <= self.now && !c.zero;
                let Some(c) = change.filter(mine) else {
                    return Err(format!(
                        "sector {sector} shows change {id}, which was never issued, or is past"
                    ));
                };
                if !c.range(history.sectors).contains(&sector) {
                    return Err(format!("sector {sector} shows change {id}, which never wrote it"));
                }
                c.in_place(self.now)
            }
            Seen::Zero if self.zeroed[sector] == 0 => {
                return Err(format!("sector {sector} shows zeros, but nothing has zeroed it"));
            }
            Seen::Zero => self.zeroed[sector],
        };
        let (issued, id) = self.newest[sector];
        if issued > end {
            return Err(format!("sector {sector} shows {seen:?}, but change {id} must be there"));
        }
        let (at, id) = self.observed[sector];
        if at > end && seen != Seen::Change(id as u32) {
            return Err(format!("sector {sector} shows {seen:?}, but a read has shown change {id} over it"));
        }
        Ok(())
    }
}

impl Change {
    /// The sectors that it changes, of those up to `end`.
    fn range(&self, end: usize) -> std::ops::Range<usize> {
        self.first.min(end)..self.first.saturating_add(self.sectors).min(end)
    }

    /// When it was acknowledged, as known at `now`.
    fn in_place(&self, now: u64) -> u64 {
        self.acked.filter(|a| *a <= now).unwrap_or(u64::MAX)
    }
}

impl History {
    pub fn new(sectors: usize, base: usize) -> History {
        let show = |sector| if sector < base { Seen::Base } else { Seen::Zero };
        let begin = Epoch { begun: 1, acked: Some(1), disk: (0..sectors).map(show).collect() };
        History {
            now: 1,
            changes: Vec::new(),
            snapshots: Vec::new(),
            observed: Vec::new(),
            sectors,
            epochs: vec![begin],
        }
    }

    /// A rollback to what `disk` shows begins.
    pub fn issue_rollback(&mut self, disk: Vec<Seen>) {
        let begun = self.tick();
        self.sectors = self.sectors.max(disk.len());
        self.epochs.push(Epoch { begun, acked: None, disk });
    }

    /// The rollback that was begun is acknowledged.
    pub fn ack_rollback(&mut self) {
        let now = self.tick();
        if let Some(epoch) = self.epochs.last_mut() {
            epoch.acked = Some(now);
        }
    }

    /// A rollback is done whose present was to be kept as the newest snapshot, with this number, if at all; it `was` not if
    /// nothing had changed since the last one.
    pub fn kept(&mut self, snapshot: Option<usize>, was: bool) {
        let now = self.tick();
        match snapshot {
            Some(id) if was => self.snapshots[id].acked = Some(now),
            Some(_) => drop(self.snapshots.pop()),
            None => {}
        }
    }

    /// True if what was issued at `time` belongs to `epoch`.
    fn is_in(&self, epoch: &Epoch, time: u64) -> bool {
        let next = self.epochs.iter().find(|next| next.begun > epoch.begun);
        time >= epoch.begun && next.is_none_or(|next| time < next.begun)
    }

    pub fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    pub fn issue(&mut self, first: usize, sectors: usize, zero: bool, split: bool) -> usize {
        let issued = self.tick();
        let change = Change {
            first,
            sectors,
            zero,
            issued,
            acked: None,
            failed: false,
            durable: None,
            split,
            size: None,
        };
        self.changes.push(change);
        self.changes.len() - 1
    }

    /// A resize of a disk of `old` sectors; one at a time.
    pub fn issue_resize(&mut self, old: usize, new: usize) -> usize {
        let id = self.issue(old.min(new), usize::MAX, true, true);
        self.changes[id].size = Some(new);
        self.sectors = self.sectors.max(new);
        id
    }

    /// What a disk of `size` sectors tells at `now`, if a resize must be there that was acknowledged before `must`.
    fn resizes(&self, epoch: &Epoch, size: usize, now: u64, must: u64) -> Result<Resizes, String> {
        // The last one that is there is one of these; 0 stands for the beginning.
        let mut candidates = if size == epoch.disk.len() { vec![0] } else { Vec::new() };
        for c in self.changes.iter().filter(|c| self.is_in(epoch, c.issued) && c.issued <= now) {
            let Some(new) = c.size else { continue };
            if !c.failed && c.acked.is_some_and(|a| a < must) {
                candidates.clear();
            }
            if new == size {
                candidates.push(c.issued);
            }
        }
        match (candidates.first(), candidates.last()) {
            (Some(&certain), Some(&possible)) => Ok(Resizes { certain, possible }),
            _ => Err(format!("the disk has {size} sectors")),
        }
    }

    pub fn ack(&mut self, id: usize, fua: bool) {
        let now = self.tick();
        self.changes[id].acked = Some(now);
        if fua {
            self.changes[id].durable = Some(now);
        }
    }

    /// A flush issued at `issued` was acknowledged.
    pub fn flushed(&mut self, issued: u64) {
        let now = self.tick();
        for change in &mut self.changes {
            if change.acked.is_some_and(|a| a < issued) && change.durable.is_none() {
                change.durable = Some(now);
            }
        }
    }

    /// A snapshot is being taken of a disk that shows `seen`; `None`: requests are running.
    pub fn snapshot(&mut self, name: &str, seen: Option<Vec<Seen>>) -> usize {
        let issued = self.tick();
        let seen = RefCell::new(seen);
        self.snapshots.push(Snapshot { name: name.to_owned(), seen, issued, acked: None });
        self.snapshots.len() - 1
    }

    /// Judges what was found after a crash at time `now`.
    pub fn judge(&self, found: &Observed, power_loss: bool, now: u64) -> Result<(), String> {
        let mut epochs = self.epochs.iter().rev().filter(|epoch| epoch.begun <= now);
        let last = epochs.next().ok_or("nothing has begun")?;
        let judged = match epochs.next() {
            // A rollback under way: not done, or done.
            Some(before) if last.acked.is_none_or(|acked| acked > now) && found.disk != last.disk => {
                self.judge_disk(before, &found.disk, power_loss, now)
            }
            _ => self.judge_disk(last, &found.disk, power_loss, now),
        };
        judged?;
        self.judge_snapshots(&found.snapshots, power_loss, now)
    }

    fn judge_disk(&self, epoch: &Epoch, disk: &[Seen], power_loss: bool, now: u64) -> Result<(), String> {
        // Closed under order: what is there had everything before it that was acknowledged when it was issued.
        let resizes = self.resizes(epoch, disk.len(), now, now + 1)?;
        let newest = self.newest_issued(epoch, disk).max(resizes.certain);
        let must = |c: &Change| {
            let durable = c.durable.is_some_and(|d| d <= now);
            let before = power_loss && c.acked.is_some_and(|a| a < newest);
            let acked = c.acked.is_some_and(|a| a <= now);
            !c.failed && acked && (durable || before || !power_loss)
        };
        let judge = Judge::new(self, epoch, now, resizes, must);
        for (sector, &seen) in disk.iter().enumerate() {
            judge.allowed(sector, seen)?;
        }
        self.judge_atomic(&judge, disk)
    }

    /// A request is there as a whole or not at all. Of one that failed a part may be hidden by a later, unaligned one,
    /// which put the old bytes that it read around its own.
    fn judge_atomic(&self, judge: &Judge<'_>, disk: &[Seen]) -> Result<(), String> {
        let mine = |c: &Change| self.is_in(judge.epoch, c.issued) && c.issued <= judge.now;
        let whole = |c: &&Change| !c.split && !c.zero && !c.failed && mine(c);
        for (id, c) in self.changes.iter().enumerate().filter(|(_, c)| whole(c)) {
            let range = c.range(disk.len());
            if !disk[range.clone()].contains(&Seen::Change(id as u32)) {
                continue;
            }
            for sector in range {
                let end = match disk[sector] {
                    Seen::Zero => judge.zeroed[sector],
                    Seen::Change(other) if mine(&self.changes[other as usize]) => {
                        self.changes[other as usize].in_place(judge.now)
                    }
                    Seen::Base | Seen::Change(_) => judge.epoch.begun,
                };
                if c.issued > end {
                    let seen = disk[sector];
                    return Err(format!(
                        "torn request: change {id} is there, but sector {sector} shows {seen:?}"
                    ));
                }
            }
        }
        Ok(())
    }

    fn judge_snapshots(
        &self,
        found: &[(String, Vec<Seen>)],
        power_loss: bool,
        now: u64,
    ) -> Result<(), String> {
        for (name, seen) in found {
            let taken = self.snapshots.iter().find(|s| s.name == *name && s.issued <= now);
            let Some(taken) = taken else {
                return Err(format!("snapshot {name} is there, which was never taken"));
            };
            self.judge_snapshot(taken, seen, power_loss, now).map_err(|e| format!("snapshot {name}: {e}"))?;
        }
        let acked = |s: &&Snapshot| s.acked.is_some_and(|a| a <= now);
        match self.snapshots.iter().filter(acked).find(|s| found.iter().all(|(name, _)| *name != s.name)) {
            Some(lost) => Err(format!("snapshot {} is lost", lost.name)),
            None => Ok(()),
        }
    }

    /// A snapshot shows the disk as it was at one moment between its beginning and its end, and always the same one.
    fn judge_snapshot(
        &self,
        taken: &Snapshot,
        seen: &[Seen],
        power_loss: bool,
        now: u64,
    ) -> Result<(), String> {
        if let Some(then) = &*taken.seen.borrow() {
            if seen.len() != then.len() {
                return Err(format!("it has {} sectors, not {}", seen.len(), then.len()));
            }
            return match (0..seen.len()).find(|&s| seen[s] != then[s]) {
                Some(s) => Err(format!("sector {s} shows {:?}, not {:?}", seen[s], then[s])),
                None => Ok(()),
            };
        }
        let acked = taken.acked.filter(|a| *a <= now);
        let epoch = self.epochs.iter().rfind(|epoch| epoch.begun <= taken.issued);
        let epoch = epoch.ok_or("nothing had begun")?;
        let resizes = self.resizes(epoch, seen.len(), acked.unwrap_or(now), taken.issued)?;
        let newest = self.newest_issued(epoch, seen).max(resizes.certain);
        let must = |c: &Change| {
            let when = if power_loss && acked.is_none() { c.durable } else { c.acked };
            !c.failed && (when.is_some_and(|w| w < taken.issued) || c.acked.is_some_and(|a| a < newest))
        };
        let judge = Judge::new(self, epoch, acked.unwrap_or(now), resizes, must);
        for (sector, &seen) in seen.iter().enumerate() {
            judge.allowed(sector, seen)?;
        }
        self.judge_atomic(&judge, seen)?;
        if acked.is_some() {
            *taken.seen.borrow_mut() = Some(seen.to_vec());
        }
        Ok(())
    }

    /// When the newest change was issued that is there.
    fn newest_issued(&self, epoch: &Epoch, seen: &[Seen]) -> u64 {
        let issued = |seen: &Seen| match seen {
            Seen::Change(id) => self.changes.get(*id as usize).map(|c| c.issued),
            _ => None,
        };
        let issued = |seen: &Seen| issued(seen).filter(|at| self.is_in(epoch, *at));
        seen.iter().filter_map(issued).max().unwrap_or(0)
    }

    /// Judges what a read that was issued at `issued` and has just ended saw from `first` on.
    pub fn judge_read(&mut self, first: usize, bytes: &[u8], issued: u64) -> Result<(), String> {
        let must = |c: &Change| !c.failed && c.acked.is_some_and(|a| a < issued);
        let epoch = self.epochs.last().ok_or("nothing has begun")?;
        let judge = Judge::new(self, epoch, u64::MAX, Resizes::UNKNOWN, must);
        let mut shown = Vec::new();
        for (i, sector) in bytes.chunks_exact(SECTOR).enumerate() {
            let seen = identify(first + i, sector)?;
            judge.allowed(first + i, seen)?;
            if let Seen::Change(id) = seen {
                shown.push((first + i, id as usize, issued));
            }
        }
        self.observed.extend(shown);
        Ok(())
    }
}
