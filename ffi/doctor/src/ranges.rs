//! Lists of CPUs and nodes, as the kernel writes them: "0-3,8".

/// The numbers in a list; what is not a number or a range is left out.
pub fn numbers(list: &str) -> Vec<u64> {
    let mut numbers = Vec::new();
    for part in list.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<u64>(), last.parse::<u64>()) {
            // No machine has more CPUs: a file with nonsense in it must not fill the memory.
            numbers.extend((first..=last).take(1 << 16));
        }
    }
    numbers
}

#[cfg(test)]
mod tests {
    use super::numbers;

    #[test]
    fn ranges_are_inclusive() {
        assert_eq!(numbers("0-3,8\n"), [0, 1, 2, 3, 8]);
        assert!(numbers("\n").is_empty());
        assert_eq!(numbers("x,2-1,5"), [5]);
        assert_eq!(numbers("0-18446744073709551615").len(), 1 << 16);
    }
}
