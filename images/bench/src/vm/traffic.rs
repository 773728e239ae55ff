//! What the DMA maps of a guest with a strict vIOMMU cost QEMU. Counts can fail a run, times cannot.

use anyhow::{Result, ensure};
use serde::Serialize;
use vfio_fast_e2e::{ScenarioSpec, Verdict};
use vfio_fast_protocol::job::Mode;
use vfio_fast_protocol::record::Traffic;
use vfio_fast_protocol::scenarios::viommu_traffic;

use crate::summary::Spread;
use crate::table::{Table, ratio};
use crate::targets::times;

/// What the guest reads: one map for each page.
const DISK_MIB: u64 = 128;
/// The target for calls and for CPU time per DMA map, relative to stock.
const OF_STOCK: f64 = 1.2;
/// The maps of the two modes may differ by one in this many: the guest's kernel chooses its buffers.
const STRAYS: u64 = 10;

pub fn plan(rounds: u32) -> ScenarioSpec {
    viommu_traffic::spec(DISK_MIB, rounds)
}

/// All rounds.
#[derive(Clone, Debug, Serialize)]
pub struct Rows {
    stock: Side,
    fast: Side,
    /// CPU time of QEMU per DMA map, relative to stock in the same round.
    cpu: Spread,
    /// Whether it reaches the target.
    reached: bool,
}

/// One listener.
#[derive(Clone, Debug, Serialize)]
struct Side {
    maps: Spread,
    unmaps: Spread,
    /// Map and unmap calls per DMA map.
    calls: Spread,
    /// Microseconds of CPU time outside the guest per DMA map.
    cpu: Spread,
    /// Microseconds until the data had moved, per DMA map.
    wall: Spread,
}

/// A value per DMA map.
fn per_map(traffic: &Traffic, value: u64) -> f64 {
    value as f64 / traffic.map_calls.max(1) as f64
}

impl Rows {
    /// `None` if a mode has no result.
    pub fn of(all: &[Traffic]) -> Option<Self> {
        let of = |mode: Mode| all.iter().filter(move |traffic| traffic.mode == mode);
        let side = |mode: Mode| {
            let spread = |value: fn(&Traffic) -> f64| Spread::of(of(mode).map(value));
            Side {
                maps: spread(|traffic| traffic.map_calls as f64),
                unmaps: spread(|traffic| traffic.unmap_calls as f64),
                calls: spread(|traffic| per_map(traffic, traffic.map_calls + traffic.unmap_calls)),
                cpu: spread(|traffic| per_map(traffic, traffic.qemu_ns) / 1e3),
                wall: spread(|traffic| per_map(traffic, traffic.wall_ns) / 1e3),
            }
        };
        let cpu = Spread::of(of(Mode::Fast).filter_map(|fast| {
            let stock = of(Mode::Stock).find(|stock| stock.round == fast.round)?;
            Some(per_map(fast, fast.qemu_ns) / per_map(stock, stock.qemu_ns))
        }));
        let reached = cpu.median <= OF_STOCK;
        (cpu.count > 0).then(|| Self { stock: side(Mode::Stock), fast: side(Mode::Fast), cpu, reached })
    }

    pub fn table(&self) -> Table {
        let per_map =
            |spread: Spread| format!("{:.1} µs [{:.1} – {:.1}]", spread.median, spread.min, spread.max);
        let row = |name: &str, side: &Side, of_stock: String| {
            vec![
                name.to_owned(),
                side.maps.median.to_string(),
                side.unmaps.median.to_string(),
                format!("{:.3}", side.calls.median),
                per_map(side.cpu),
                of_stock,
                per_map(side.wall),
            ]
        };
        let reached = if self.reached { "reached" } else { "NOT reached" };
        let of_stock = format!("{} (target: at most {}, {reached})", ratio(self.cpu), times(OF_STOCK));
        Table {
            head: vec![
                "",
                "maps",
                "unmaps",
                "calls per map",
                "QEMU's CPU time per map",
                "of stock",
                "wall time per map",
            ],
            rows: vec![row("stock", &self.stock, String::new()), row("fast", &self.fast, of_stock)],
        }
    }
}

/// Checks what was counted.
pub fn check(verdict: &Verdict, rounds: u32) -> Result<()> {
    let mut wrong = verdict.problems();
    wrong.extend(judge(&verdict.traffic, rounds));
    ensure!(wrong.is_empty(), "vIOMMU: {}, logs: {}", wrong.join("\n"), verdict.folder.display());
    Ok(())
}

fn judge(all: &[Traffic], rounds: u32) -> Vec<String> {
    let mut wrong = Vec::new();
    for round in 0..rounds {
        let of = |mode| all.iter().find(|traffic| traffic.round == round && traffic.mode == mode);
        let Some((stock, fast)) = of(Mode::Stock).zip(of(Mode::Fast)) else {
            wrong.push(format!("round {round} is not complete"));
            continue;
        };
        // A map is a page.
        let pages = stock.bytes / 4096;
        if stock.map_calls < pages / 2 {
            wrong.push(format!("stock made {} maps for {pages} pages", stock.map_calls));
        }
        let calls = |traffic: &Traffic| per_map(traffic, traffic.map_calls + traffic.unmap_calls);
        if fast.map_calls.abs_diff(stock.map_calls) > stock.map_calls / STRAYS
            || calls(fast) > calls(stock) * OF_STOCK
        {
            let of =
                |traffic: &Traffic| format!("{} maps, {} unmaps", traffic.map_calls, traffic.unmap_calls);
            wrong.push(format!("round {round}: stock made {}, fast {}", of(stock), of(fast)));
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    fn right() -> Vec<Traffic> {
        let of = |(round, mode)| Traffic {
            round,
            mode,
            map_calls: 100,
            unmap_calls: 100,
            bytes: 100 * 4096,
            qemu_ns: 1_000_000 * (1 + u64::from(mode == Mode::Fast && round == 1)),
            guest_ns: 7,
            wall_ns: 3_000_000,
        };
        [(0, Mode::Stock), (0, Mode::Fast), (1, Mode::Fast), (1, Mode::Stock)].map(of).to_vec()
    }

    #[test]
    fn counts_decide() {
        assert!(judge(&right(), 2).is_empty());
        let failing = |change: &dyn Fn(&mut Vec<Traffic>)| {
            let mut all = right();
            change(&mut all);
            judge(&all, 2).len()
        };
        assert_eq!(failing(&|all| all[1].unmap_calls = 141), 1);
        assert_eq!(failing(&|all| all[1].map_calls = 111), 1);
        assert_eq!(failing(&|all| all.truncate(3)), 1);
        assert_eq!(failing(&|all| all[0].bytes *= 3), 1, "too few maps");
        assert_eq!(failing(&|all| all[1].qemu_ns *= 9), 0, "a time fails no run");
    }

    #[test]
    fn costs_are_per_map_and_compared_within_a_round() {
        let rows = Rows::of(&right()).unwrap();
        assert_eq!((rows.cpu.min, rows.cpu.max, rows.reached), (1.0, 2.0, false));
        assert_eq!(
            (rows.stock.cpu.median, rows.stock.calls.median, rows.stock.wall.median),
            (10.0, 2.0, 30.0)
        );
        let table = rows.table();
        assert!(table.rows.iter().all(|row| row.len() == table.head.len()));
        assert!(Rows::of(&right()[..1]).is_none());
    }
}
