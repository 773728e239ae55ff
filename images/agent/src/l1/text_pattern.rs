//! Texts with numbers in them: `%p` stands for one hexadecimal number with `0x`, `%d` for one
//! decimal number. Everything else has to be there to the letter.

/// Returns what follows if `text` begins as the pattern describes.
pub fn strip<'a>(pattern: &str, text: &'a str) -> Option<&'a str> {
    let Some(at) = pattern.find('%') else { return text.strip_prefix(pattern) };
    let rest = text.strip_prefix(&pattern[..at])?;
    let (rest, radix) = match pattern[at + 1..].chars().next() {
        Some('p') => (rest.strip_prefix("0x")?, 16),
        Some('d') => (rest, 10),
        other => panic!("`{pattern}` has a placeholder %{other:?}"),
    };
    let end = rest.find(|c: char| !c.is_digit(radix)).unwrap_or(rest.len());
    if end == 0 {
        return None;
    }
    strip(&pattern[at + 2..], &rest[end..])
}

/// Whether the whole text is as the pattern describes.
pub fn matches(pattern: &str, text: &str) -> bool {
    strip(pattern, text) == Some("")
}

/// Every decimal number in a text.
pub fn numbers(text: &str) -> Vec<u64> {
    text.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_may_differ_and_nothing_else() {
        let pattern = "map(%p, %p) = -12 (x)";
        assert!(matches(pattern, "map(0x7f00, 0x0) = -12 (x)"));
        assert!(!matches(pattern, "map(0x7f00, 0) = -12 (x)"));
        assert!(!matches(pattern, "map(0x7f00, 0x) = -12 (x)"));
        assert!(!matches(pattern, "map(0x7f00, 0x0) = -12 (y)"));
        assert!(!matches(pattern, "map(0x7f00, 0x0) = -12 (x)."));
        assert_eq!(strip(pattern, "map(0x7f00, 0x0) = -12 (x): more"), Some(": more"));
        assert!(matches("group %d: ", "group 12: "));
        assert!(!matches("group %d: ", "group : "));
    }

    #[test]
    fn numbers_are_found() {
        assert_eq!(numbers("needs 4096 bytes, 64 allowed"), [4096, 64]);
    }
}
