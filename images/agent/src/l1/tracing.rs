//! The second witness: the kernel's own tracepoints, counted by histogram triggers. It knows
//! nothing of QEMU, of the library, or of the preloaded ioctl witness.

use std::fs;

use anyhow::{Context, Result, ensure};

const EVENTS: &str = "/sys/kernel/tracing/events";

/// Where and what is counted.
///
/// Every key contains the thread. Where two CPUs insert the same key for the first time, the second one waits for the first
/// only for a number of attempts, then drops its event (`__tracing_map_insert()`). An emulated CPU can stand still for longer
/// than that. A thread runs on one CPU at a time, so no two CPUs insert the same key.
const HISTOGRAMS: [(&str, &str); 3] = [
    // VFIO_IOMMU_MAP_DMA and VFIO_IOMMU_UNMAP_DMA; IOMMU_IOAS_MAP, IOMMU_IOAS_UNMAP and IOMMU_IOAS_MAP_FILE. The library's
    // threads are new ones in each commit, which the default of 2048 keys may not hold.
    (
        "syscalls/sys_enter_ioctl",
        "hist:keys=cmd.hex,common_pid:size=16384 \
         if cmd==0x3b71||cmd==0x3b72||cmd==0x3b85||cmd==0x3b86||cmd==0x3b8f",
    ),
    ("iommu/map", "hist:keys=common_pid:vals=size"),
    ("iommu/unmap", "hist:keys=common_pid:vals=unmapped_size"),
];

/// On arm64 the kernel maps for each device what receives its interrupts. Nothing else may be mapped there, so it is left
/// out by its address.
const NOT_OWN: &str = if cfg!(target_arch = "aarch64") { " if iova<0x8000000||iova>0x80fffff" } else { "" };

/// What the kernel counted since [`start`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Calls to map.
    pub map_calls: u64,
    /// Calls to unmap.
    pub unmap_calls: u64,
    /// Bytes the IOMMU core mapped.
    pub map_bytes: u64,
    /// Bytes the IOMMU core unmapped.
    pub unmap_bytes: u64,
}

/// Begins to count.
pub fn start() -> Result<()> {
    for (event, trigger) in HISTOGRAMS {
        let own = if event.starts_with("iommu/") { NOT_OWN } else { "" };
        fs::write(format!("{EVENTS}/{event}/trigger"), format!("{trigger}{own}"))
            .with_context(|| format!("cannot count {event}"))?;
    }
    Ok(())
}

/// What was counted so far.
pub fn read() -> Result<Counted> {
    let mut texts = Vec::new();
    for (event, _) in HISTOGRAMS {
        let path = format!("{EVENTS}/{event}/hist");
        texts.push(fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?);
    }
    let calls = rows(&texts[0])?;
    let of = |cmd: u64| -> u64 { calls.iter().filter(|r| r.key == cmd).map(|r| r.hits).sum() };
    let bytes = |text: &str| -> Result<u64> { Ok(rows(text)?.iter().map(|r| r.value).sum()) };
    Ok(Counted {
        map_calls: of(0x3b71) + of(0x3b85) + of(0x3b8f),
        unmap_calls: of(0x3b72) + of(0x3b86),
        map_bytes: bytes(&texts[1])?,
        unmap_bytes: bytes(&texts[2])?,
    })
}

struct Row {
    key: u64,
    hits: u64,
    value: u64,
}

/// `{ cmd: 3b71, common_pid:  77 } hitcount:  10`, or `{ common_pid:  77 } hitcount:  10  size:  40960`, and `Dropped: 0` at
/// the end. Only the first part of a key is read.
fn rows(text: &str) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let mut complete = false;
    for line in text.lines().map(str::trim) {
        if let Some(row) = line.strip_prefix('{') {
            let (key, values) = row.split_once('}').context("a histogram row without its end")?;
            let first = key.split(',').next().unwrap_or_default();
            let key = first.rsplit(':').next().unwrap_or_default().trim();
            let numbers: Vec<u64> = values.split_whitespace().filter_map(|word| word.parse().ok()).collect();
            rows.push(Row {
                key: match key.strip_prefix("0x") {
                    Some(hex) => u64::from_str_radix(hex, 16),
                    // `.hex` prints no prefix, and a pid is decimal: both read as themselves.
                    None => key.parse().or_else(|_| u64::from_str_radix(key, 16)),
                }
                .with_context(|| format!("histogram key `{key}`"))?,
                hits: *numbers.first().context("a histogram row without hits")?,
                value: numbers.get(1).copied().unwrap_or(0),
            });
        } else if let Some(dropped) = line.strip_prefix("Dropped:") {
            ensure!(dropped.trim() == "0", "the kernel dropped {dropped} histogram entries");
            complete = true;
        }
    }
    ensure!(complete, "a histogram without its totals:\n{text}");
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_totals() {
        let text = "# event histogram\n#\n\n{ cmd: 3b71, common_pid:  77 } hitcount:  32\n\
                    { cmd: 3b72, common_pid:  78 } hitcount: 24\n\n\
                    Totals:\n    Hits: 56\n    Entries: 2\n    Dropped: 0\n";
        let found = rows(text).unwrap();
        assert_eq!(
            found.iter().map(|row| (row.key, row.hits)).collect::<Vec<_>>(),
            [(0x3b71, 32), (0x3b72, 24)]
        );
        let text = "{ common_pid:   77 } hitcount: 3  size:   40960\nTotals:\n Dropped: 0\n";
        assert_eq!(rows(text).unwrap()[0].value, 40960);
    }

    #[test]
    fn a_dropped_entry_is_an_error() {
        assert!(rows("Totals:\n Hits: 1\n Dropped: 1\n").is_err());
        assert!(rows("").is_err());
    }
}
