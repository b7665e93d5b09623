//! Crashes: which of the things that were not sure are there afterwards.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::effect::Effect;
use super::page::Page;
use super::pages::{Content, sectors};
use super::rng::Rng;
use super::state::{Landed, State};

/// What dies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Crash {
    /// The process. What had completed is visible and as durable as before; each write or punch in flight is
    /// there, not there, or torn at sectors.
    ProcessDeath,
    /// The machine. What was synced is there; of all else, and of what was in flight, any part.
    PowerLoss,
}

/// What a power loss may do beyond losing things.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CrashOptions {
    /// A sector that was being rewritten may hold garbage.
    pub tear_rewrites: bool,
    /// A sector that was being rewritten may be unreadable (EIO) until it is written again.
    pub unreadable: bool,
}

impl Default for CrashOptions {
    fn default() -> CrashOptions {
        CrashOptions { tear_rewrites: true, unreadable: false }
    }
}

/// Time that a restart takes.
const RESTART_NS: i64 = 1_000_000_000;

/// Something that a crash may lose.
struct Unsure {
    ino: u64,
    effect: Arc<Effect>,
    in_flight: bool,
}

/// How much of an effect is kept.
#[derive(Clone, Copy)]
enum Keep {
    Nothing,
    All,
    /// Each sector so many times out of 8.
    Torn(u64),
}

impl Keep {
    const fn if_true(keep: bool) -> Keep {
        if keep { Keep::All } else { Keep::Nothing }
    }

    fn any(rng: &mut Rng) -> Keep {
        match rng.below(4) {
            0 => Keep::Nothing,
            1 => Keep::All,
            _ => Keep::Torn(1 + rng.below(7)),
        }
    }
}

/// What a power loss keeps. A coin for each sector alone would hardly ever lose just one write, or all of them.
#[derive(Clone, Copy)]
enum Plan {
    Nothing,
    All,
    Completed,
    Half,
    AllBut(usize),
    Only(usize),
    First(usize),
    From(usize),
    AllButTorn(usize),
    OnlyTorn(usize),
    /// Files whose bit in the number is set, whole.
    Files(u64),
    /// Each sector so many times out of 8.
    Sectors(u64),
    Mixed,
}

impl Plan {
    fn draw(count: usize, rng: &mut Rng) -> Plan {
        let chosen = rng.index(count.max(1));
        match rng.below(16) {
            0 => Plan::Nothing,
            1 => Plan::All,
            2 => Plan::Completed,
            3 => Plan::Half,
            4 | 5 => Plan::AllBut(chosen),
            6 => Plan::Only(chosen),
            7 => Plan::First(chosen),
            8 => Plan::From(chosen),
            9 | 10 => Plan::AllButTorn(chosen),
            11 => Plan::OnlyTorn(chosen),
            12 => Plan::Files(rng.draw()),
            13 => Plan::Sectors(1 + rng.below(7)),
            _ => Plan::Mixed,
        }
    }

    fn keep(self, nth: usize, unsure: &Unsure, rng: &mut Rng) -> Keep {
        match self {
            Plan::Nothing => Keep::Nothing,
            Plan::All => Keep::All,
            Plan::Completed => Keep::if_true(!unsure.in_flight),
            Plan::Half => Keep::if_true(rng.chance(1, 2)),
            Plan::AllBut(chosen) => Keep::if_true(nth != chosen),
            Plan::Only(chosen) => Keep::if_true(nth == chosen),
            Plan::First(chosen) => Keep::if_true(nth < chosen),
            Plan::From(chosen) => Keep::if_true(nth >= chosen),
            Plan::AllButTorn(chosen) if nth != chosen => Keep::All,
            Plan::OnlyTorn(chosen) if nth != chosen => Keep::Nothing,
            Plan::AllButTorn(_) | Plan::OnlyTorn(_) => Keep::Torn(1 + rng.below(7)),
            Plan::Files(bits) => Keep::if_true(bits >> (unsure.ino % 64) & 1 == 1),
            Plan::Sectors(num) => Keep::Torn(num),
            Plan::Mixed => Keep::any(rng),
        }
    }

    /// True if the plan is about data alone, so that sizes may come apart from it.
    const fn may_split_sizes(self) -> bool {
        !matches!(self, Plan::Nothing | Plan::All | Plan::Completed)
    }
}

impl State {
    /// The state after a crash; everything in it follows from this state, `kind` and `seed`.
    pub(super) fn crash(&self, kind: Crash, seed: u64, options: CrashOptions) -> State {
        let mut rng = Rng::new(seed);
        let mut after = State { rng: rng.split(), ..State::new(0) };
        after.clock_ns = self.clock_ns + RESTART_NS;
        after.boot = self.boot + u64::from(kind == Crash::PowerLoss);
        after.shared = self.shared;
        after.landed = self.landed;
        after.next_ino = self.next_ino;
        after.inodes.clone_from(&self.inodes);
        match kind {
            Crash::ProcessDeath => {
                after.names = self.names.clone();
                self.land_in_flight(&mut after, &mut rng);
            }
            Crash::PowerLoss => {
                after.names = self.names.after_power_loss(&mut rng);
                self.lose_power(&mut after, &mut rng, options);
            }
        }
        after.forget_unreachable();
        after
    }

    /// What the operations in flight would do, in any order.
    fn in_flight_effects(&self, rng: &mut Rng) -> Vec<Unsure> {
        let effects = self.in_flight.iter().filter_map(|running| {
            Some(Unsure { ino: running.ino, effect: Arc::new(self.effect_of(running)?), in_flight: true })
        });
        let mut effects: Vec<Unsure> = effects.collect();
        rng.shuffle(&mut effects);
        effects
    }

    /// The kernel finishes, in part or not at all, what a dead process had begun.
    fn land_in_flight(&self, after: &mut State, rng: &mut Rng) {
        let plan = rng.below(4);
        for unsure in self.in_flight_effects(rng) {
            let keep = match plan {
                0 => Keep::Nothing,
                1 => Keep::All,
                2 => Keep::if_true(rng.chance(1, 2)),
                _ => Keep::any(rng),
            };
            match keep {
                Keep::Nothing => {}
                Keep::All => after.land(unsure.ino, (*unsure.effect).clone()),
                // A size without its data is for power losses: the kernel sets it after the data.
                Keep::Torn(num) => after.land(unsure.ino, unsure.effect.torn(rng, num, true)),
            }
        }
    }

    fn lose_power(&self, after: &mut State, rng: &mut Rng, options: CrashOptions) {
        let list = self.unsure(rng);
        let plan = Plan::draw(list.len(), rng);
        let split_sizes = plan.may_split_sizes() && rng.chance(1, 3);
        let mut contents: BTreeMap<u64, Content> = BTreeMap::new();
        for (nth, unsure) in list.iter().enumerate() {
            let keep = plan.keep(nth, unsure, rng);
            let keep_size = if split_sizes { rng.chance(1, 2) } else { !matches!(keep, Keep::Nothing) };
            let content =
                contents.entry(unsure.ino).or_insert_with(|| self.inode(unsure.ino).durable.clone());
            match keep {
                Keep::All if keep_size => unsure.effect.apply(content),
                Keep::All => unsure.effect.torn(rng, 8, keep_size).apply(content),
                Keep::Nothing if !keep_size => {}
                Keep::Nothing => unsure.effect.torn(rng, 0, keep_size).apply(content),
                Keep::Torn(num) => unsure.effect.torn(rng, num, keep_size).apply(content),
            }
        }
        if !matches!(plan, Plan::All) {
            self.spoil(&list, &mut contents, rng, options);
        }
        for (ino, inode) in &mut after.inodes {
            if let Some(mut content) = contents.remove(ino) {
                content.set_len(content.len);
                inode.durable = content;
            }
            inode.visible = inode.durable.clone();
            inode.unsynced.clear();
            inode.forgetful = false;
        }
    }

    /// Everything that is not durable, in order of completion, and then what is in flight.
    fn unsure(&self, rng: &mut Rng) -> Vec<Unsure> {
        let landed =
            self.inodes.iter().flat_map(|(ino, inode)| inode.unsynced.iter().map(move |l| (*ino, l)));
        let mut landed: Vec<(u64, &Landed)> = landed.collect();
        landed.sort_unstable_by_key(|(_, landed)| landed.number);
        let unsure =
            |(ino, landed): (u64, &Landed)| Unsure { ino, effect: landed.effect.clone(), in_flight: false };
        landed.into_iter().map(unsure).chain(self.in_flight_effects(rng)).collect()
    }

    /// Makes a few sectors that were being rewritten garbage or unreadable.
    fn spoil(
        &self,
        list: &[Unsure],
        contents: &mut BTreeMap<u64, Content>,
        rng: &mut Rng,
        options: CrashOptions,
    ) {
        if list.is_empty() || !(options.tear_rewrites || options.unreadable) || rng.chance(1, 2) {
            return;
        }
        for _ in 0..1 + rng.below(3) {
            let unsure = &list[rng.index(list.len())];
            let Some(content) = contents.get_mut(&unsure.ino).filter(|_| !unsure.effect.patches.is_empty())
            else {
                continue;
            };
            let patch = &unsure.effect.patches[rng.index(unsure.effect.patches.len())];
            let inode = self.inode(unsure.ino);
            let rewritten = inode.durable.has_data(patch.page)
                || (unsure.in_flight && inode.visible.has_data(patch.page));
            let num = 1 + rng.below(8);
            let mask = patch.mask & rng.mask(num);
            if patch.bytes.is_none() || !rewritten || mask == 0 {
                continue;
            }
            if options.unreadable && (!options.tear_rewrites || rng.chance(1, 2)) {
                content.spoil(patch.page, mask);
            } else {
                content.patch(patch.page, mask, Some(&garbage(content, patch.page, mask, rng)));
            }
        }
    }
}

/// A page with random bytes in the sectors `mask`: all random, or a few bits of what is there.
fn garbage(content: &Content, page: u64, mask: u8, rng: &mut Rng) -> Arc<Page> {
    let mut bytes = content.page(page);
    for range in sectors(mask) {
        if rng.chance(1, 4) {
            let bit = rng.index(range.len() * 8);
            bytes[range.start + bit / 8] ^= 1 << (bit % 8);
        } else {
            rng.fill(&mut bytes[range]);
        }
    }
    Arc::new(bytes)
}
