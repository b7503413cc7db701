//! Sizes on the command line: a plain number of bytes, or one with K, M, G or T behind it, each
//! 1,024 times the one before.

/// Parses a size.
pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits]
        .parse()
        .map_err(|_| "expected a number of bytes, or one such as 512M or 16G".to_owned())?;
    let unit: u64 = match text[digits..].trim_end_matches(['i', 'B', 'b']) {
        "" => 1,
        "K" | "k" => 1 << 10,
        "M" | "m" => 1 << 20,
        "G" | "g" => 1 << 30,
        "T" | "t" => 1 << 40,
        unit => return Err(format!("unknown unit '{unit}': use K, M, G or T")),
    };
    number.checked_mul(unit).ok_or_else(|| "the size is too large".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!(parse_size("512"), Ok(512));
        assert_eq!(parse_size("16G"), Ok(16 << 30));
        assert_eq!(parse_size("3MiB"), Ok(3 << 20));
        assert!(parse_size("G").is_err() && parse_size("5X").is_err() && parse_size("").is_err());
        assert!(parse_size("99999999999T").is_err());
    }
}
