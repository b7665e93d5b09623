//! The thread beside the queues: it opens the image, runs its background tasks, and closes it.

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use super::control::VERSION;
use super::daemon::{Event, Wires};
use super::jobs::{Job, Jobs, Plan, ResizeJob, RollbackJob, SnapshotJob, Step, first_of};
use super::open::{OpenRequest, Opened, open};
use super::{Log, Mode};
use serde_json::{Value, json};

use crate::chain::Image;
use crate::layer::Finish;
use crate::ops::{self, LiveCut, LiveRollback, LiveRolledBack, process};
use crate::runtime::sync::Monitor;
use crate::runtime::{RingOptions, Runtime, sleep, spawn, thread};
use crate::storage::File;
use crate::storage::uring::Uring;
use crate::{Error, Kind, Result};

/// Time between two ticks of an image.
const TICK: Duration = Duration::from_secs(1);
/// Operations in flight: growth, a checkpoint's nodes, the walk for holes.
const RING_ENTRIES: u32 = 64;

/// How far the end has come.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
enum Phase {
    #[default]
    Running,
    /// Requests still run, and will soon wait for the next daemon.
    Leaving,
    /// No request runs any more; the image is to be closed.
    Closing,
    /// The image is closed.
    Closed,
}

/// The thread of an open image.
#[derive(Debug)]
pub(super) struct Background {
    phase: Arc<Monitor<Phase>>,
    folded: Receiver<()>,
    closed: Receiver<Result<()>>,
    thread: JoinHandle<()>,
}

impl Background {
    /// Starts the thread, which opens the image and hands it to `opened`.
    pub(super) fn start(
        request: OpenRequest,
        wires: Wires,
        opened: impl FnOnce(Result<Opened>) + Send + 'static,
    ) -> Result<Background> {
        let phase = Arc::new(Monitor::new(Phase::Running));
        let (sender, closed) = channel();
        let (early, folded) = channel();
        let ours = phase.clone();
        let run = move || {
            // A guest's write may wait for a checkpoint or for growth of the file.
            let _ = thread::set_io_flusher();
            let runtime = match Runtime::new(RingOptions { entries: RING_ENTRIES }) {
                Ok(runtime) => runtime,
                Err(e) => return opened(Err(Error::io("set up io_uring on this host", e))),
            };
            runtime.block_on(async move {
                let Wires { log, jobs, events, pulse, .. } = wires;
                if let Some(pulse) = pulse {
                    drop(spawn(pulse.beat()));
                }
                let snapshots =
                    Snapshots { jobs, events, mode: request.mode, search: request.search.clone() };
                match open(request).await {
                    Ok(image) => {
                        let kept = image.image.clone();
                        drop(spawn(fold_early(kept.clone(), ours.clone(), early)));
                        opened(Ok(image));
                        // Nobody listens any more only if the process is ending anyhow.
                        let _ = sender.send(live(kept, ours, log, snapshots).await);
                    }
                    Err(e) => opened(Err(e)),
                }
            });
        };
        let thread = std::thread::Builder::new()
            .name("background".into())
            .spawn(run)
            .map_err(|e| Error::io("cannot start a thread", e))?;
        Ok(Background { phase, folded, closed, thread })
    }

    /// Has a checkpoint made while requests still run, so that little is left to do for [`Background::close`]: from before
    /// that until the next daemon has the image, its users wait. Gives up waiting for it after `bound`.
    pub(super) fn fold_early(&self, bound: Duration) {
        self.phase.update(|phase| *phase = Phase::Leaving);
        let _ = self.folded.recv_timeout(bound);
    }

    /// Commits and closes the image, and ends the thread. No request may be running.
    ///
    /// # Errors
    /// The image is as after a crash: the next open recovers it.
    pub(super) fn close(self) -> Result<()> {
        self.phase.update(|phase| *phase = Phase::Closing);
        let gone = |_| Err(Error::new(Kind::Io, "the background thread ended early"));
        let result = self.closed.recv().unwrap_or_else(gone);
        // A panic there has aborted the process.
        let _ = self.thread.join();
        result
    }
}

/// The image's life from open to closed.
async fn live(
    image: Arc<Image<Uring>>,
    phase: Arc<Monitor<Phase>>,
    log: Log,
    snapshots: Snapshots,
) -> Result<()> {
    // Closing needs them too, so they run until it is done.
    let (checkpoints, growth, ring, seals) = (image.clone(), image.clone(), image.clone(), image.clone());
    run_until(&phase, Phase::Closed, async move { checkpoints.run_checkpoints().await });
    run_until(&phase, Phase::Closed, async move { growth.run_growth().await });
    run_until(&phase, Phase::Closed, async move { ring.run_ring_growth().await });
    run_until(&phase, Phase::Closed, async move { seals.run_seals().await });
    let (on, until) = (image.clone(), phase.clone());
    run_until(&phase, Phase::Closing, async move { snapshots.run(on, until).await });
    let (holes, told) = (image.clone(), log.clone());
    run_until(&phase, Phase::Closing, async move {
        if let Err(e) = holes.find_holes().await {
            told.say(&format!("{e}: free space stays unknown, the file grows instead"));
        }
    });
    tick(&image, &phase, &log).await;
    let closed = image.close().await;
    phase.update(|phase| *phase = Phase::Closed);
    closed
}

/// See [`Background::fold_early`]. A checkpoint that runs is never broken off; the close waits for it.
async fn fold_early(image: Arc<Image<Uring>>, phase: Arc<Monitor<Phase>>, done: Sender<()>) {
    let phase = phase.wait(|phase| (*phase >= Phase::Leaving).then_some(*phase)).await;
    if let (Phase::Leaving, Some(head)) = (phase, image.head()) {
        // What keeps it from its end shows in the close.
        let _ = head.checkpoint(Finish::Running).await;
    }
    // The image first: whoever is told may close it.
    drop(image);
    let _ = done.send(());
}

/// What live snapshots need to know of the daemon.
struct Snapshots {
    jobs: Jobs,
    events: Sender<Event>,
    mode: Mode,
    search: Vec<PathBuf>,
}

impl Snapshots {
    /// Takes snapshots, goes back to them and resizes, as clients ask. What is done in steps, and is under way when the image
    /// is to be closed, is given up; a resize comes to its end before.
    async fn run(self, image: Arc<Image<Uring>>, phase: Arc<Monitor<Phase>>) {
        let ours = Rc::new(self);
        loop {
            let job = ours.jobs.next().await;
            let (ours, image, phase) = (ours.clone(), image.clone(), phase.clone());
            drop(spawn(async move {
                let (done, asked) = match job {
                    Job::Snapshot(job) => (ours.take(&image, &phase, &job).await, job.asked),
                    Job::Rollback(job) => (ours.roll_back(&image, &phase, &job).await, job.asked),
                    Job::Resize(job) => return ours.resize(image, job).await,
                    Job::Plan(what, answer) => {
                        let planned = ours.plan(&image, what).await;
                        drop(image);
                        // A client that has gone does not hear of it.
                        return drop(answer.send(planned));
                    }
                };
                // Before the client is told: it may look for what belongs to the image.
                drop(image);
                if let Some(answer) = done.transpose() {
                    asked.answer(answer);
                }
            }));
        }
    }

    async fn resize(&self, image: Arc<Image<Uring>>, job: ResizeJob) {
        let resized = match self.mode {
            Mode::Write => ops::resize_open(&image, &job.options).await,
            Mode::ReadOnly | Mode::Temporary => Err(Error::new(
                Kind::Unsupported,
                "a disk that is served read-only, or temporarily, keeps its size",
            )
            .at(image.path())),
        };
        drop(image);
        // A client that has gone does not hear of it.
        let _ = job.answer.send(resized);
    }

    /// What a snapshot or a rollback would do.
    async fn plan(&self, image: &Image<Uring>, what: Plan) -> Result<Value> {
        let (search, is_mount_point) = (&self.search, process::is_mount_point);
        match what {
            Plan::Snapshot(name, if_changed) => {
                self.may_be_cut(image)?;
                if let Some(last) = image.chain().unchanged_since().filter(|_| if_changed) {
                    let path = last.reader.path.to_string_lossy().into_owned();
                    return Ok(json!({ "v": VERSION, "unchanged": true, "path": path }));
                }
                let planned = ops::plan_live_snapshot(&Uring, image, &name, search, is_mount_point).await?;
                let path = planned.path.to_string_lossy().into_owned();
                let geometry = image.geometry();
                Ok(json!({
                    "v": VERSION,
                    "path": path,
                    "cost": planned.cost,
                    "virtual_size": geometry.size,
                    "sector_size": geometry.sector_size,
                }))
            }
            Plan::Rollback(name, present) => {
                self.may_go_back(image)?;
                let planned =
                    ops::plan_live_rollback(&Uring, image, &name, present, search, is_mount_point).await?;
                let kept = planned
                    .kept
                    .map(|(name, path)| json!({ "name": name.as_str(), "path": path.to_string_lossy() }));
                let size = planned.virtual_size;
                Ok(json!({ "v": VERSION, "kept": kept, "virtual_size": size, "cost": planned.cost }))
            }
        }
    }

    fn may_go_back(&self, image: &Image<Uring>) -> Result<()> {
        if self.mode == Mode::Write {
            return Ok(());
        }
        let text = "a disk that is served read-only, or temporarily, does not go back";
        Err(Error::new(Kind::Unsupported, text).at(image.path()))
    }

    fn may_be_cut(&self, image: &Image<Uring>) -> Result<()> {
        if self.mode != Mode::Temporary {
            return Ok(());
        }
        let text = "what is written to a temporary disk vanishes with it, and cannot be kept";
        Err(Error::new(Kind::Unsupported, text).at(image.path()))
    }

    fn tell_new_head(&self, image: &Image<Uring>) {
        let file = image.chain().top().reader.file.meta();
        if let Ok(meta) = file {
            // Nobody listens any more only when the process ends.
            let _ = self.events.send(Event::NewHead(meta.id));
        }
    }

    /// Goes through the steps of a rollback. `None`: its client does not want it any more.
    async fn roll_back(
        &self,
        image: &Image<Uring>,
        phase: &Monitor<Phase>,
        job: &RollbackJob,
    ) -> Result<Option<Value>> {
        self.may_go_back(image)?;
        let closing = || phase.wait(|phase| (*phase >= Phase::Closing).then_some(()));
        let (name, search) = (&job.name, &self.search);
        let is_mount_point = process::is_mount_point;
        let prepared = LiveRollback::prepare(&Uring, image, name, job.present, search, is_mount_point).await;
        // The present may have been kept, whatever came behind that.
        self.tell_new_head(image);
        let mut rollback = prepared?;
        let size = Some(rollback.size()).filter(|size| *size != image.geometry().size);
        job.asked.answer(Ok(json!({ "resized": size })));
        if !job.asked.wanted(Step::Hold, closing()).await {
            return Ok(None);
        }
        rollback.hold().await?;
        job.asked.answer(Ok(json!({ "held": true })));
        if !job.asked.wanted(Step::Cut, closing()).await {
            return Ok(None);
        }
        let done = rollback.finish().await;
        self.tell_new_head(image);
        let LiveRolledBack { kept, target, sb } = done?;
        let kept = kept.map(|kept| {
            let (path, layer) = (kept.path.to_string_lossy().into_owned(), kept.sb.layer.to_string());
            json!({ "name": kept.name.as_str(), "path": path, "layer_id": layer })
        });
        Ok(Some(json!({
            "kept": kept,
            "path": target.to_string_lossy(),
            "layer_id": sb.layer.to_string(),
            "virtual_size": sb.virtual_size,
        })))
    }

    /// Goes through the steps of a snapshot. `None`: its client does not want it any more.
    async fn take(
        &self,
        image: &Image<Uring>,
        phase: &Monitor<Phase>,
        job: &SnapshotJob,
    ) -> Result<Option<Value>> {
        self.may_be_cut(image)?;
        if job.if_changed
            && let Some(last) = image.chain().unchanged_since()
        {
            let path = last.reader.path.to_string_lossy().into_owned();
            return Ok(Some(json!({ "unchanged": true, "path": path })));
        }
        let closing = || phase.wait(|phase| (*phase >= Phase::Closing).then_some(()));
        let cut = LiveCut::prepare(&Uring, image, &job.name, &self.search, process::is_mount_point).await?;
        job.asked.answer(Ok(json!({ "prepared": true })));
        if !job.asked.wanted(Step::Hold, closing()).await {
            return Ok(None);
        }
        cut.hold().await?;
        job.asked.answer(Ok(json!({ "held": true })));
        if !job.asked.wanted(Step::Cut, closing()).await {
            return Ok(None);
        }
        let (path, sb) = cut.cut();
        self.tell_new_head(image);
        job.asked.answer(Ok(json!({ "path": path.to_string_lossy(), "layer_id": sb.layer.to_string() })));
        if !job.asked.wanted(Step::Seal, closing()).await {
            return Ok(None);
        }
        image.sealed().await?;
        Ok(Some(json!({ "sealed": true })))
    }
}

/// Ticks until the image is to be closed; never breaks off in the middle of one.
async fn tick(image: &Image<Uring>, phase: &Monitor<Phase>, log: &Log) {
    let mut poisoned = false;
    while !reached(phase, Phase::Closing, sleep(TICK)).await {
        if let Err(e) = image.tick().await
            && !std::mem::replace(&mut poisoned, true)
        {
            log.say(&e.to_string());
        }
    }
}

fn run_until(phase: &Arc<Monitor<Phase>>, end: Phase, task: impl Future<Output = ()> + 'static) {
    let phase = phase.clone();
    drop(spawn(async move {
        reached(&phase, end, task).await;
    }));
}

/// Runs `task` to its end, or until the phase `end`; `true` in the second case.
async fn reached(phase: &Monitor<Phase>, end: Phase, task: impl Future<Output = ()>) -> bool {
    first_of(phase.wait(|phase| (*phase >= end).then_some(())), task).await.is_some()
}
