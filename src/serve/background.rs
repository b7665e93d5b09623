//! The thread beside the queues: it opens the image, runs its background tasks, and closes it.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::task::Poll;
use std::thread::JoinHandle;
use std::time::Duration;

use super::Log;
use super::open::{OpenRequest, Opened, open};
use crate::chain::Image;
use crate::runtime::sync::Monitor;
use crate::runtime::{RingOptions, Runtime, sleep, spawn, thread};
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
    /// No request runs any more; the image is to be closed.
    Closing,
    /// The image is closed.
    Closed,
}

/// The thread of an open image.
#[derive(Debug)]
pub(super) struct Background {
    phase: Arc<Monitor<Phase>>,
    closed: Receiver<Result<()>>,
    thread: JoinHandle<()>,
}

impl Background {
    /// Starts the thread, which opens the image and hands it to `opened`.
    pub(super) fn start(
        request: OpenRequest,
        log: Log,
        opened: impl FnOnce(Result<Opened>) + Send + 'static,
    ) -> Result<Background> {
        let phase = Arc::new(Monitor::new(Phase::Running));
        let (sender, closed) = channel();
        let ours = phase.clone();
        let run = move || {
            // A guest's write may wait for a checkpoint or for growth of the file.
            let _ = thread::set_io_flusher();
            let runtime = match Runtime::new(RingOptions { entries: RING_ENTRIES }) {
                Ok(runtime) => runtime,
                Err(e) => return opened(Err(Error::io("set up io_uring on this host", e))),
            };
            runtime.block_on(async move {
                match open(request).await {
                    Ok(image) => {
                        let kept = image.image.clone();
                        opened(Ok(image));
                        // Nobody listens any more only if the process is ending anyhow.
                        let _ = sender.send(live(kept, ours, log).await);
                    }
                    Err(e) => opened(Err(e)),
                }
            });
        };
        let thread = std::thread::Builder::new()
            .name("background".into())
            .spawn(run)
            .map_err(|e| Error::io("cannot start a thread", e))?;
        Ok(Background { phase, closed, thread })
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
async fn live(image: Arc<Image<Uring>>, phase: Arc<Monitor<Phase>>, log: Log) -> Result<()> {
    // Closing needs them too, so they run until it is done.
    let (checkpoints, growth, ring) = (image.clone(), image.clone(), image.clone());
    run_until(&phase, Phase::Closed, async move { checkpoints.run_checkpoints().await });
    run_until(&phase, Phase::Closed, async move { growth.run_growth().await });
    run_until(&phase, Phase::Closed, async move { ring.run_ring_growth().await });
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
    let mut over = pin!(phase.wait(|phase| (*phase >= end).then_some(())));
    let mut task = pin!(task);
    poll_fn(|cx| {
        if over.as_mut().poll(cx).is_ready() {
            return Poll::Ready(true);
        }
        task.as_mut().poll(cx).map(|()| false)
    })
    .await
}
