//! The whole of it: users on a simulated ublk driver, the server, an image, a simulated disk; and the server dies.
//!
//! With a death goes what the process had in flight on the disk: each such write is there, not there, or torn. The
//! next server recovers the image and takes the device up, and the driver delivers again what was not acknowledged.

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use cowdisk::chain::{Access, Image, ImageQueue, OpenOptions, open_chain};
use cowdisk::device::{Disk, Geometry};
use cowdisk::format::Holder;
use cowdisk::layer::{NewLayer, create};
use cowdisk::limits::MIN_JOURNAL_BYTES;
use cowdisk::ops::{CheckOptions, Status, check};
use cowdisk::storage::sim::{Crash, Rng, SimDisk, spawn};
use cowdisk::ublk::sim::{Machine, Profile};

use super::kills::{DISK_BYTES, MODES, Plan, Sum, Users, judge, life};
use super::setting;

const IMAGE: &str = "/d/vm.cow";

/// An open image as the disk that a server serves.
#[derive(Clone)]
struct Engine(Arc<Image<SimDisk>>);

impl Disk for Engine {
    type Queue = ImageQueue<SimDisk>;
    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }
    fn moves_unseen(&self) -> bool {
        self.0.moves_unseen()
    }
    fn queue(&self, _index: usize) -> Rc<ImageQueue<SimDisk>> {
        let queue = ImageQueue::new(self.0.clone());
        for _ in 0..4 {
            drop(spawn(queue.clone().runner()));
        }
        queue
    }
}

async fn open(disk: SimDisk) -> cowdisk::Result<Engine> {
    let me = Holder { pid: 1, host: "test".into(), socket: String::new() };
    let options =
        OpenOptions { alive: |_| false, cache_bytes: 1 << 20, ..OpenOptions::new(Access::Write(me)) };
    let image = Arc::new(open_chain(&disk, Path::new(IMAGE), &options).await?.0);
    let (a, b, c, d) = (image.clone(), image.clone(), image.clone(), image.clone());
    drop(spawn(async move { a.run_checkpoints().await }));
    drop(spawn(async move { b.run_growth().await }));
    drop(spawn(async move { c.run_ring_growth().await }));
    drop(spawn(async move { d.find_holes().await.ok() }));
    Ok(Engine(image))
}

/// `checksums`: of data; without them it goes by without being seen, where the driver has that.
fn make(seed: u64, checksums: bool) -> SimDisk {
    let disk = SimDisk::new(seed);
    disk.block_on(async {
        let new = NewLayer { journal: MIN_JOURNAL_BYTES, checksums, ..NewLayer::empty(DISK_BYTES) };
        create(&disk, Path::new(IMAGE), &new).await.unwrap();
    });
    disk
}

fn run(plan: &Plan) -> Result<Sum, String> {
    let machine = Machine::new(plan.profile, plan.seed);
    let mut disk = make(plan.seed, !plan.unseen);
    let users: Rc<Users> = Rc::default();
    let mut rng = Rng::new(plan.seed ^ 0xe4914e);
    let mut sum = Sum { runs: 1, ..Sum::default() };
    for number in 0..=plan.kills {
        let server = machine.boot_on(&disk);
        let most = 1 << (8 + rng.below(7));
        let steps = rng.below(most);
        if number == plan.kills {
            machine.spare()
        } else {
            machine.kill_in(steps, &server)
        }
        let on = disk.clone();
        let end = server.run(|server| {
            let engine = server.block_on(open(on)).map_err(|e| format!("open: {e}"))?;
            life(server, &machine, &engine, plan, &users, None, &mut sum)?;
            server.block_on(async move { engine.0.close().await }).map_err(|e| format!("close: {e}"))
        });
        server.exit();
        match end {
            None => {
                sum.kills += 1;
                disk = disk.crash(Crash::ProcessDeath, plan.seed + number);
            }
            Some(end) => {
                end?;
                break;
            }
        }
    }
    judge(&machine, &users)?;
    let options = CheckOptions { data: true, chain: true, ..CheckOptions::default() };
    let report = disk.block_on(check(&disk, Path::new(IMAGE), &options)).map_err(|e| e.to_string())?;
    if report.status != Status::Clean {
        return Err(format!("{:?}", report.findings));
    }
    (sum.steps, sum.counts) = (machine.steps(), machine.counts());
    Ok(sum)
}

#[test]
fn an_image_outlives_its_servers() {
    let mut sum = Sum::default();
    for seed in 0..setting("COWDISK_UBLK_SEEDS", 60) {
        let (major, minor) = [(6, 1), (6, 12), (6, 16), (7, 0)][(seed % 4) as usize];
        let copy = MODES[(seed % 3) as usize];
        let profile = Profile::of(major, minor);
        let (unseen, fault, mutation) = (seed % 5 > 2, None, None);
        let plan = Plan { profile, seed, copy, unseen, fault, mutation, kills: 5, requests: 40 };
        match run(&plan) {
            Ok(more) => sum.add(&more),
            Err(e) => panic!("kernel 6.{minor}, seed {seed}: {e}"),
        }
    }
    println!(
        "ublk: an image through {} kills in {} runs: {} requests, {} delivered again, nothing lost; {} steps",
        sum.kills, sum.runs, sum.counts.requests, sum.counts.reissued, sum.steps
    );
    println!("ublk: {} reads and writes without checksums went by unseen", sum.counts.unseen);
    assert!(sum.kills > 0 && sum.counts.reissued > 0 && sum.counts.unseen > 0);
}
