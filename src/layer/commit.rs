//! Commits of a layer (rules C and N2).

use super::batch::{Batch, QueueSpace, WriteItem};
use super::head::Head;
use crate::error::Result;
use crate::journal::OnRecord;
use crate::rules::{self, Rule};
use crate::storage::Storage;
use crate::units::Seq;

impl<S: Storage> Head<S> {
    /// Makes everything up to `seq` durable; nothing is done if it is. One barrier does, as records prove their data.
    /// Those of data without checksums don't: after a power loss they count up to what a durable record says was
    /// durable, so that has to be there too. If no request brings such a record, `carry` writes one that changes nothing.
    ///
    /// # Errors
    /// `Poisoned`; a checkpoint broke off that a failed write needs (W4).
    pub async fn commit(&self, seq: Seq, carry: impl AsyncFn() -> Result<()>) -> Result<()> {
        self.make_durable(seq).await?;
        if self.reader.checksums || !rules::holds(Rule::TwoBarriers) {
            return Ok(());
        }
        loop {
            match self.journal.on_record(seq).await.map_err(|e| e.at(self.path()))? {
                OnRecord::Yes => return Ok(()),
                OnRecord::In(record) => self.make_durable(record).await?,
                OnRecord::No => carry().await?,
            }
        }
    }

    /// The first barrier alone.
    ///
    /// # Errors
    /// As [`Head::commit`].
    pub async fn make_durable(&self, seq: Seq) -> Result<()> {
        self.journal.commit(seq).await.map_err(|e| e.at(self.path()))
    }

    /// Writes a record that changes nothing, and tells what is durable. For who has no queue; not to be dropped while it
    /// runs, as it has a number then.
    ///
    /// # Errors
    /// `Poisoned`; the journal is full and cannot be emptied.
    pub async fn write_evidence(&self) -> Result<()> {
        let mut batch = Batch::default();
        batch.push(WriteItem::Evidence).expect("the first item always fits");
        self.write(&QueueSpace::default(), &mut batch).await.map(drop)
    }
}
