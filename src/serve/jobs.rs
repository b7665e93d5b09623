//! Work that clients ask a daemon for; it is done on the thread beside the queues.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::task::Poll;
use std::time::Duration;

use serde_json::{Value, json};

use super::control::{VERSION, is_ending};
use crate::chain::SnapshotName;
use crate::ops::{Present, ResizeOptions, Resized};
use crate::runtime::sleep;
use crate::runtime::sync::Monitor;
use crate::{Error, Kind, Result};

/// How long a snapshot may stand prepared: the other images of the same instant are being opened.
const PREPARED: Duration = Duration::from_secs(120);
/// How long requests are held back for the other images of the same instant.
const HELD: Duration = Duration::from_secs(5);

/// A step of a snapshot that a client wants.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Step {
    Prepare,
    Hold,
    Cut,
    Seal,
    /// The client is gone.
    Gone,
}

/// A snapshot that is to be taken.
#[derive(Debug)]
pub(super) struct SnapshotJob {
    pub(super) name: SnapshotName,
    /// Only if there is anything that the last one does not show.
    pub(super) if_changed: bool,
    pub(super) asked: Asked,
}

/// The daemon's end of a [`Talk`].
#[derive(Debug)]
pub(super) struct Asked {
    step: Arc<Monitor<Step>>,
    answers: Sender<Result<Value>>,
}

/// The client's end of something that is done in steps. When it goes, so does what was not cut.
#[derive(Debug)]
pub(super) struct Talk {
    step: Arc<Monitor<Step>>,
    answers: Receiver<Result<Value>>,
}

/// A resize that is to be done, and who waits for it.
#[derive(Debug)]
pub(super) struct ResizeJob {
    pub(super) options: ResizeOptions,
    pub(super) answer: Sender<Result<Resized>>,
}

/// A rollback that is to be done.
#[derive(Debug)]
pub(super) struct RollbackJob {
    pub(super) name: SnapshotName,
    pub(super) present: Present,
    pub(super) asked: Asked,
}

/// Something that is not to be done, but told.
#[derive(Clone, Debug)]
pub(super) enum Plan {
    /// The snapshot of that name; `true`: only if there is anything that the last one does not show.
    Snapshot(SnapshotName, bool),
    Rollback(SnapshotName, Present),
}

/// Something to do.
#[derive(Debug)]
pub(super) enum Job {
    Rollback(RollbackJob),
    /// Only to say what would happen.
    Plan(Plan, Sender<Result<Value>>),
    Snapshot(SnapshotJob),
    Resize(ResizeJob),
}

/// What is to be done.
#[derive(Clone, Debug, Default)]
pub(super) struct Jobs {
    queue: Arc<Monitor<VecDeque<Job>>>,
}

impl Jobs {
    /// Asks for a snapshot.
    pub(super) fn snapshot(&self, name: SnapshotName, if_changed: bool) -> Talk {
        let (asked, talk) = talk();
        let job = SnapshotJob { name, if_changed, asked };
        self.queue.update(|queue| queue.push_back(Job::Snapshot(job)));
        talk
    }

    /// Asks for a rollback.
    pub(super) fn rollback(&self, name: SnapshotName, present: Present) -> Talk {
        let (asked, talk) = talk();
        let job = RollbackJob { name, present, asked };
        self.queue.update(|queue| queue.push_back(Job::Rollback(job)));
        talk
    }

    /// Asks for a resize, and waits for it.
    pub(super) fn resize(&self, options: ResizeOptions) -> Result<Resized> {
        let (answer, answered) = channel();
        self.queue.update(|queue| queue.push_back(Job::Resize(ResizeJob { options, answer })));
        answered.recv().unwrap_or_else(|_| Err(is_ending()))
    }

    /// Asks what would happen, and waits for the answer.
    pub(super) fn plan(&self, what: Plan) -> Result<Value> {
        let (answer, answered) = channel();
        self.queue.update(|queue| queue.push_back(Job::Plan(what, answer)));
        answered.recv().unwrap_or_else(|_| Err(is_ending()))
    }

    /// Waits for something to do.
    pub(super) async fn next(&self) -> Job {
        self.queue.wait(VecDeque::pop_front).await
    }
}

/// Both ends of a talk.
fn talk() -> (Asked, Talk) {
    let step = Arc::new(Monitor::new(Step::Prepare));
    let (answers, answered) = channel();
    (Asked { step: step.clone(), answers }, Talk { step, answers: answered })
}

impl Talk {
    /// Asks for the next step, and waits for its answer.
    pub(super) fn wait(&self, step: Step) -> Result<Value> {
        self.step.update(|at| *at = step);
        self.answers.recv().unwrap_or_else(|_| Err(is_ending()))
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        self.step.update(|at| *at = Step::Gone);
    }
}

impl Asked {
    pub(super) fn answer(&self, answer: Result<Value>) {
        // Whoever does not listen any more is noticed at the next step.
        let _ = self.answers.send(answer.map(|mut answer| {
            answer["v"] = json!(VERSION);
            answer
        }));
    }

    /// Waits until the client wants `step`. `false`: it is gone, or takes too long, or the image is to be `closed`.
    pub(super) async fn wanted(&self, step: Step, closed: impl Future<Output = ()>) -> bool {
        let patience = if step == Step::Cut { HELD } else { PREPARED };
        let wanted = self.step.wait(|at| (*at >= step).then_some(*at == step));
        match first_of(first_of(wanted, sleep(patience)), closed).await {
            Some(Some(wanted)) => wanted,
            Some(None) => {
                let text =
                    format!("it was given up after {} s: its client did not go on", patience.as_secs());
                self.answer(Err(Error::new(Kind::InUse, text)));
                false
            }
            None => false,
        }
    }
}

/// What `first` gives, unless `second` ends before it.
pub(super) async fn first_of<T>(
    first: impl Future<Output = T>,
    second: impl Future<Output = ()>,
) -> Option<T> {
    let (mut first, mut second) = (pin!(first), pin!(second));
    poll_fn(|cx| match first.as_mut().poll(cx) {
        Poll::Ready(value) => Poll::Ready(Some(value)),
        Poll::Pending => second.as_mut().poll(cx).map(|()| None),
    })
    .await
}
