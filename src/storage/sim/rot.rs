//! Bit rot: damage to the medium under a file, which no operation has done. A block is 4 KiB.
//!
//! It hits what is visible, and with it what is durable, unless a newer version is still on its way there.

use std::path::Path;
use std::sync::Arc;

use super::disk::SimDisk;
use super::page::Page;
use super::pages::{Content, PAGE, SECTOR, WHOLE, at};
use super::state::{Inode, State};

/// The sector bit of a byte position.
const fn bit(pos: u64) -> u8 {
    1 << (pos % PAGE / SECTOR)
}

/// The sectors in which two pages agree.
fn agreement(one: &Page, other: &Page) -> u8 {
    let sectors = one.chunks(at(SECTOR)).zip(other.chunks(at(SECTOR))).enumerate();
    sectors.fold(0, |mask, (i, (a, b))| if a == b { mask | 1 << i } else { mask })
}

impl Inode {
    fn rot(&mut self, page: u64, mask: u8, bytes: Page) {
        assert!(page * PAGE < self.visible.len, "rot lies within the file");
        let reached = mask & agreement(&self.visible.page(page), &self.durable.page(page));
        let bytes = Arc::new(bytes);
        self.visible.patch(page, mask, Some(&bytes));
        self.durable.patch(page, reached, Some(&bytes));
        clip(&mut self.visible);
        clip(&mut self.durable);
    }
}

/// Bytes past the end stay zero.
fn clip(content: &mut Content) {
    content.set_len(content.len);
}

impl State {
    fn find_inode(&mut self, path: &Path) -> &mut Inode {
        let ino = self.resolve(path, true).and_then(|path| self.lookup(&path)).expect("rot needs a file");
        self.inode_mut(ino)
    }
}

/// All of these panic if there is no such file or block.
impl SimDisk {
    /// Changes the 512-byte sector of `path` that holds byte `pos`.
    pub fn corrupt(&self, path: impl AsRef<Path>, pos: u64, change: impl FnOnce(&mut [u8])) {
        let mut state = self.state();
        let inode = state.find_inode(path.as_ref());
        let mut page = inode.visible.page(pos / PAGE);
        change(&mut page[at(pos % PAGE / SECTOR * SECTOR)..][..at(SECTOR)]);
        inode.rot(pos / PAGE, bit(pos), page);
    }

    /// Flips bit `bit` of a file, counted from the lowest of byte 0.
    pub fn flip_bit(&self, path: impl AsRef<Path>, bit: u64) {
        self.corrupt(path, bit / 8, |sector| sector[at(bit / 8 % SECTOR)] ^= 1 << (bit % 8));
    }

    /// Makes the sector that holds byte `pos` unreadable (EIO) until it is rewritten.
    pub fn make_unreadable(&self, path: impl AsRef<Path>, pos: u64) {
        let mut state = self.state();
        let inode = state.find_inode(path.as_ref());
        assert!(pos < inode.visible.len, "rot lies within the file");
        inode.visible.spoil(pos / PAGE, bit(pos));
        inode.durable.spoil(pos / PAGE, bit(pos));
    }

    /// Zeroes a block.
    pub fn zero_block(&self, path: impl AsRef<Path>, block: u64) {
        self.state().find_inode(path.as_ref()).rot(block, WHOLE, Page::zeroed());
    }

    /// Swaps two blocks.
    pub fn swap_blocks(&self, path: impl AsRef<Path>, one: u64, other: u64) {
        let mut state = self.state();
        let inode = state.find_inode(path.as_ref());
        let (first, second) = (inode.visible.page(one), inode.visible.page(other));
        inode.rot(one, WHOLE, second);
        inode.rot(other, WHOLE, first);
    }

    /// Puts a copy of block `from` over block `to`.
    pub fn copy_block(&self, path: impl AsRef<Path>, from: u64, to: u64) {
        let mut state = self.state();
        let inode = state.find_inode(path.as_ref());
        let page = inode.visible.page(from);
        inode.rot(to, WHOLE, page);
    }

    /// Puts other bytes into a block: an older version of it is what a lost write leaves.
    pub fn replace_block(&self, path: impl AsRef<Path>, block: u64, bytes: &[u8; PAGE as usize]) {
        let mut page = Page::zeroed();
        page.copy_from_slice(bytes);
        self.state().find_inode(path.as_ref()).rot(block, WHOLE, page);
    }

    /// What a misdirected first write of block `from` leaves: its bytes over block `to`, and zeros in its place.
    /// For one that leaves older bytes, see [`super::FaultKind::Misdirected`].
    pub fn misdirect(&self, path: impl AsRef<Path>, from: u64, to: u64) {
        self.copy_block(path.as_ref(), from, to);
        self.zero_block(path, from);
    }
}
