//! What may be on the disk.
//!
//! Every sector that a request writes carries the request's number, so a stale, lost or misplaced sector is told
//! apart. A request has a time at which it was issued and one at which it was acknowledged. A sector may show a value
//! unless a request that *must* be there was issued after that value was acknowledged. What must be there:
//! after the death of the process every acknowledged request; after a power loss every request that a completed
//! FLUSH or FUA covers, and, for each later request that is there, all that were acknowledged before it was issued.

use std::collections::BTreeSet;

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
}

/// What a sector shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seen {
    Zero,
    Base,
    Change(usize),
}

#[derive(Clone, Debug)]
pub struct History {
    pub now: u64,
    pub changes: Vec<Change>,
    pub sectors: usize,
    /// Sectors that the base provides.
    pub base: usize,
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
    if bytes.iter().all(|&b| b == 0) {
        return Ok(Seen::Zero);
    }
    let word = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    let (at, id) = ((word >> 32) as usize, (word & 0xFFFF_FFFF) as usize);
    if bytes != stamp(at, id) {
        return Err(format!("sector {sector} holds garbage: {:02x?}…", &bytes[..16]));
    }
    if at != sector {
        return Err(format!("sector {sector} holds what belongs to sector {at} (change {id})"));
    }
    Ok(if id == 0xFFFF_FFFF { Seen::Base } else { Seen::Change(id) })
}

impl History {
    pub fn new(sectors: usize, base: usize) -> History {
        History { now: 1, changes: Vec::new(), sectors, base }
    }

    pub fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    pub fn issue(&mut self, first: usize, sectors: usize, zero: bool, split: bool) -> usize {
        let issued = self.tick();
        let change =
            Change { first, sectors, zero, issued, acked: None, failed: false, durable: None, split };
        self.changes.push(change);
        self.changes.len() - 1
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

    fn covers(&self, id: usize, sector: usize) -> bool {
        let c = &self.changes[id];
        (c.first..c.first + c.sectors).contains(&sector)
    }

    /// May `sector` show `seen`, if the changes `must` have to be there? Time `now` is that of the crash.
    fn allowed(&self, sector: usize, seen: Seen, must: &BTreeSet<usize>, now: u64) -> Result<(), String> {
        // When the value was in place for sure: anything that must be there and was issued later hides it.
        let ends: Vec<u64> = match seen {
            Seen::Base if sector < self.base => vec![0],
            Seen::Base => return Err(format!("sector {sector} shows a base that it does not have")),
            Seen::Change(id) => {
                let Some(c) = self.changes.get(id).filter(|c| c.issued <= now && !c.zero) else {
                    return Err(format!("sector {sector} shows change {id}, which was never issued"));
                };
                if !self.covers(id, sector) {
                    return Err(format!("sector {sector} shows change {id}, which never wrote it"));
                }
                vec![c.acked.filter(|a| *a <= now).unwrap_or(u64::MAX)]
            }
            Seen::Zero => {
                let zeros = self
                    .changes
                    .iter()
                    .enumerate()
                    .filter(|(id, c)| c.zero && c.issued <= now && self.covers(*id, sector));
                let mut ends: Vec<u64> =
                    zeros.map(|(_, c)| c.acked.filter(|a| *a <= now).unwrap_or(u64::MAX)).collect();
                if sector >= self.base {
                    ends.push(0);
                }
                ends
            }
        };
        let hiding =
            |end: u64| must.iter().copied().find(|&m| self.covers(m, sector) && self.changes[m].issued > end);
        match ends.iter().map(|&end| hiding(end)).collect::<Option<Vec<usize>>>() {
            // At least one explanation is hidden by nothing.
            None => Ok(()),
            Some(hidden) => {
                Err(format!("sector {sector} shows {seen:?}, but change {hidden:?} must be there"))
            }
        }
    }

    /// What must be there after a power loss, given what is seen.
    fn must_after_power_loss(&self, seen: &[Seen], now: u64) -> BTreeSet<usize> {
        let mut must: BTreeSet<usize> =
            (0..self.changes.len()).filter(|&i| self.changes[i].durable.is_some_and(|d| d <= now)).collect();
        // Closed under order: what is there had everything before it that was acknowledged when it was issued.
        let newest = seen
            .iter()
            .filter_map(|s| match s {
                Seen::Change(id) => Some(self.changes[*id].issued),
                _ => None,
            })
            .max()
            .unwrap_or(0);
        must.extend((0..self.changes.len()).filter(|&i| {
            let c = &self.changes[i];
            !c.failed && c.acked.is_some_and(|a| a < newest && a <= now)
        }));
        must
    }

    fn must_after_death(&self, now: u64) -> BTreeSet<usize> {
        (0..self.changes.len())
            .filter(|&i| self.changes[i].acked.is_some_and(|a| a <= now) && !self.changes[i].failed)
            .collect()
    }

    /// Judges the whole disk after a crash at time `now`.
    pub fn judge(&self, disk: &[u8], power_loss: bool, now: u64) -> Result<(), String> {
        let seen: Vec<Seen> =
            disk.chunks_exact(SECTOR).enumerate().map(|(i, s)| identify(i, s)).collect::<Result<_, _>>()?;
        for (sector, s) in seen.iter().enumerate() {
            if let Seen::Change(id) = s
                && self.changes.get(*id).is_none()
            {
                return Err(format!("sector {sector} shows change {id}, which was never issued"));
            }
        }
        let must =
            if power_loss { self.must_after_power_loss(&seen, now) } else { self.must_after_death(now) };
        for (sector, &s) in seen.iter().enumerate() {
            self.allowed(sector, s, &must, now)?;
        }
        self.judge_atomic(&seen, now)
    }

    /// A request is there as a whole or not at all.
    fn judge_atomic(&self, seen: &[Seen], now: u64) -> Result<(), String> {
        for (id, c) in self.changes.iter().enumerate().filter(|(_, c)| !c.split && !c.zero && c.issued <= now)
        {
            let range = c.first..c.first + c.sectors;
            if !seen[range.clone()].contains(&Seen::Change(id)) {
                continue;
            }
            let must = BTreeSet::from([id]);
            for sector in range {
                self.allowed(sector, seen[sector], &must, now).map_err(|e| format!("torn request: {e}"))?;
            }
        }
        Ok(())
    }

    /// Judges what a read that was issued at `issued` and has just ended saw from `first` on.
    pub fn judge_read(&self, first: usize, bytes: &[u8], issued: u64) -> Result<(), String> {
        let must: BTreeSet<usize> = (0..self.changes.len())
            .filter(|&i| self.changes[i].acked.is_some_and(|a| a < issued) && !self.changes[i].failed)
            .collect();
        for (i, sector) in bytes.chunks_exact(SECTOR).enumerate() {
            let seen = identify(first + i, sector)?;
            self.allowed(first + i, seen, &must, u64::MAX)?;
        }
        Ok(())
    }
}
