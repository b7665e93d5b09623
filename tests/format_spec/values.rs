//! The values of a vector, each to be used once.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::str::FromStr;

use cowdisk::format::Place;
use cowdisk::units::{PBlock, VBlock};

pub(crate) struct Values(RefCell<BTreeMap<String, String>>);

/// A run as the document writes it: `data 5 + 3 at 1000: 0x1, 0x2, 0x3` or `zero 8 + 100`.
pub(crate) struct Extent {
    pub(crate) vblock: VBlock,
    pub(crate) blocks: u32,
    pub(crate) place: Place,
    pub(crate) crcs: Vec<u32>,
}

impl Values {
    pub(crate) fn new(values: &[(String, String)]) -> Result<Values, String> {
        let map: BTreeMap<_, _> = values.iter().cloned().collect();
        if map.len() == values.len() {
            Ok(Values(RefCell::new(map)))
        } else {
            Err("a key stands twice".into())
        }
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.0.borrow().contains_key(key)
    }

    pub(crate) fn text(&self, key: &str) -> Result<String, String> {
        self.0.borrow_mut().remove(key).ok_or_else(|| format!("{key} is missing"))
    }

    pub(crate) fn quoted(&self, key: &str) -> Result<String, String> {
        let text = self.text(key)?;
        let inner = text.strip_prefix('"').and_then(|t| t.strip_suffix('"'));
        inner.map(str::to_owned).ok_or_else(|| format!("{key}: no quotes around {text}"))
    }

    pub(crate) fn num<T: FromStr + TryFrom<u64>>(&self, key: &str) -> Result<T, String> {
        number(&self.text(key)?).ok_or_else(|| format!("{key} is no number of its type"))
    }

    pub(crate) fn list<T: FromStr + TryFrom<u64>>(&self, key: &str) -> Result<Vec<T>, String> {
        numbers(&self.text(key)?).ok_or_else(|| format!("{key} is no list of numbers"))
    }

    pub(crate) fn hex<const N: usize>(&self, key: &str) -> Result<[u8; N], String> {
        let text = self.text(key)?;
        let byte = |i: usize| u8::from_str_radix(text.get(2 * i..2 * i + 2)?, 16).ok();
        let bytes: Option<Vec<u8>> = (0..text.len() / 2).map(byte).collect();
        bytes.and_then(|b| b.try_into().ok()).ok_or_else(|| format!("{key} is not {N} bytes in hex"))
    }

    /// The extents `extent 0`, `extent 1`, …
    pub(crate) fn extents(&self) -> Result<Vec<Extent>, String> {
        let mut found = Vec::new();
        while self.has(&format!("extent {}", found.len())) {
            let text = self.text(&format!("extent {}", found.len()))?;
            found.push(extent(&text).ok_or_else(|| format!("not an extent: {text}"))?);
        }
        Ok(found)
    }

    pub(crate) fn all_used(&self) -> Result<(), String> {
        match self.0.borrow().keys().next() {
            Some(key) => Err(format!("{key} is not used")),
            None => Ok(()),
        }
    }
}

pub(crate) fn number<T: FromStr + TryFrom<u64>>(text: &str) -> Option<T> {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok().and_then(|n| T::try_from(n).ok()),
        None => text.parse().ok(),
    }
}

fn numbers<T: FromStr + TryFrom<u64>>(text: &str) -> Option<Vec<T>> {
    if text == "none" {
        return Some(Vec::new());
    }
    text.split(", ").map(number).collect()
}

fn extent(text: &str) -> Option<Extent> {
    if let Some(rest) = text.strip_prefix("zero ") {
        let (vblock, blocks) = rest.split_once(" + ")?;
        let (vblock, blocks) = (VBlock(number(vblock)?), number(blocks)?);
        return Some(Extent { vblock, blocks, place: Place::Zero, crcs: Vec::new() });
    }
    let (vblock, rest) = text.strip_prefix("data ")?.split_once(" + ")?;
    let (blocks, rest) = rest.split_once(" at ")?;
    let (pblock, crcs) = rest.split_once(": ")?;
    let place = Place::Data(PBlock(number(pblock)?));
    Some(Extent { vblock: VBlock(number(vblock)?), blocks: number(blocks)?, place, crcs: numbers(crcs)? })
}
