//! Sizes on the command line: bytes or `4k 512M 20G 1T`, powers of 1024.

/// Parses a number of bytes.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.as_bytes().last().map(u8::to_ascii_lowercase) {
        Some(b'k') => (&text[..text.len() - 1], 10),
        Some(b'm') => (&text[..text.len() - 1], 20),
        Some(b'g') => (&text[..text.len() - 1], 30),
        Some(b't') => (&text[..text.len() - 1], 40),
        Some(b'p') => (&text[..text.len() - 1], 50),
        _ => (text, 0),
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err("not a size: use bytes, or a number with k, M, G or T (powers of 1024)".into());
    }
    let number: u64 = digits.parse().map_err(|_| "too large".to_owned())?;
    number.checked_mul(1 << shift).ok_or_else(|| "too large".to_owned())
}

/// Parses a size: a multiple of 512.
pub(crate) fn sectors(text: &str) -> Result<u64, String> {
    let bytes = bytes(text)?;
    if bytes.is_multiple_of(512) { Ok(bytes) } else { Err("not a multiple of 512".into()) }
}

/// A size for people: `20.0 GiB`.
pub(crate) fn human(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let Some(power) = (1..=units.len()).rev().find(|p| bytes >= 1 << (10 * p)) else {
        return format!("{bytes} B");
    };
    format!("{:.1} {}", bytes as f64 / (1u64 << (10 * power)) as f64, units[power - 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_are_powers_of_1024() {
        assert_eq!(sectors("4k"), Ok(4096));
        assert_eq!(sectors("512M"), Ok(512 << 20));
        assert_eq!(sectors("1T"), Ok(1 << 40));
        assert_eq!(bytes("0"), Ok(0));
    }

    #[test]
    fn anything_else_is_refused() {
        for bad in ["", "k", "-1", "1.5G", "1x", " 1", "0x10", "99999999999999999999", "99999999T", "ü"] {
            assert!(bytes(bad).is_err(), "{bad:?}");
        }
        assert!(sectors("511").is_err());
    }

    #[test]
    fn people_read_units() {
        assert_eq!(human(511), "511 B");
        assert_eq!(human(20 << 30), "20.0 GiB");
    }
}
