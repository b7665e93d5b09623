//! Parses vectors and tables out of the document.

use std::collections::BTreeMap;

pub(crate) const SPEC: &str = include_str!("../../format-spec.md");

/// A fenced block `vector NAME`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Vector {
    pub(crate) name: String,
    pub(crate) values: Vec<(String, String)>,
    pub(crate) bytes: Vec<u8>,
}

/// A table marked `<!-- table: NAME -->`: its rows, by column name.
pub(crate) type Rows = Vec<BTreeMap<String, String>>;

/// Name and text (values and bytes) of each vector.
pub(crate) fn vector_texts() -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut lines = SPEC.lines();
    while let Some(line) = lines.next() {
        if let Some(name) = line.strip_prefix("```vector ") {
            let text: Vec<&str> = lines.by_ref().take_while(|l| *l != "```").collect();
            found.push((name.to_owned(), text.join("\n")));
        }
    }
    found
}

impl Vector {
    pub(crate) fn parse(name: &str, text: &str) -> Result<Vector, String> {
        let (values, dump) = text.split_once("\n--").unwrap_or((text, ""));
        let values = values
            .lines()
            .map(|line| line.split_once(" = ").ok_or_else(|| format!("no value in {line:?}")))
            .map(|pair| pair.map(|(k, v)| (k.to_owned(), v.to_owned())))
            .collect::<Result<_, _>>()?;
        let mut bytes = Vec::new();
        for line in dump.lines().filter(|l| !l.is_empty()) {
            dump_line(line, &mut bytes).ok_or_else(|| format!("not a line of bytes: {line:?}"))?;
        }
        Ok(Vector { name: name.to_owned(), values, bytes })
    }
}

fn dump_line(line: &str, bytes: &mut Vec<u8>) -> Option<()> {
    let (offset, rest) = line.split_once(' ')?;
    if offset.len() != 4 || usize::from_str_radix(offset, 16).ok()? != bytes.len() {
        return None;
    }
    if let Some(end) = rest.strip_prefix("zero to ") {
        let end = usize::from_str_radix(end, 16).ok()?;
        if end <= bytes.len() || end > 4096 {
            return None;
        }
        bytes.resize(end, 0);
        return Some(());
    }
    let row: Vec<u8> = rest.split_whitespace().map(hex_byte).collect::<Option<_>>()?;
    if row.is_empty() || row.len() > 16 {
        return None;
    }
    bytes.extend(row);
    Some(())
}

fn hex_byte(text: &str) -> Option<u8> {
    (text.len() == 2).then(|| u8::from_str_radix(text, 16).ok())?
}

/// The lines that stand for `bytes`.
pub(crate) fn dump(bytes: &[u8]) -> String {
    let mut out = String::new();
    let mut zero_from = None;
    for (i, row) in bytes.chunks(16).enumerate() {
        let at = i * 16;
        if row.iter().all(|&b| b == 0) {
            zero_from.get_or_insert(at);
            continue;
        }
        if let Some(from) = zero_from.take() {
            out.push_str(&format!("{from:04x} zero to {at:04x}\n"));
        }
        let hex: Vec<String> = row.iter().map(|b| format!("{b:02x}")).collect();
        out.push_str(&format!("{at:04x} {}\n", hex.join(" ")));
    }
    if let Some(from) = zero_from {
        out.push_str(&format!("{from:04x} zero to {:04x}\n", bytes.len()));
    }
    out
}

/// The marked tables.
pub(crate) fn tables() -> BTreeMap<String, Rows> {
    let mut found = BTreeMap::new();
    let mut lines = SPEC.lines();
    while let Some(line) = lines.next() {
        let Some(name) = line.strip_prefix("<!-- table: ").and_then(|l| l.strip_suffix(" -->")) else {
            continue;
        };
        let mut rows = lines.by_ref().take_while(|l| l.starts_with('|')).map(cells);
        let columns = rows.next().unwrap_or_else(|| panic!("table {name} has no heading"));
        rows.next();
        let rows = rows.map(|row| {
            assert_eq!(row.len(), columns.len(), "table {name}, row {row:?}");
            columns.iter().cloned().zip(row).collect()
        });
        let rows: Rows = rows.collect();
        assert!(found.insert(name.to_owned(), rows).is_none(), "two tables {name}");
    }
    found
}

fn cells(line: &str) -> Vec<String> {
    let inner = line.trim().trim_start_matches('|').trim_end_matches('|');
    inner.split('|').map(|cell| cell.trim().to_owned()).collect()
}
