//! Aggregates VM starts: medians, spreads, and ratios within a round.

use std::collections::BTreeMap;

use serde::Serialize;
use vfio_fast_protocol::job::Container;
use vfio_fast_protocol::memory::MemoryKind;
use vfio_fast_protocol::record::{Moment, Order, Start};

use super::flat;
use super::traffic::Rows;
use crate::nested::About;
use crate::summary::Spread;

/// The results of the part with real VFIO.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    #[serde(flatten)]
    pub about: About,
    pub container: Container,
    /// Starts of each case.
    pub rounds: usize,
    /// From QEMU's start until the guest executes.
    pub first_instruction: Vec<Row>,
    /// From QEMU's start until the guest's kernel has taken over from the firmware.
    pub kernel: Vec<Row>,
    /// What a start in the background wins.
    pub flat: Vec<flat::Row>,
    /// From `quit` until QEMU's process was gone.
    pub exit: Vec<Exit>,
    /// A guest with a strict vIOMMU.
    pub viommu: Option<Rows>,
}

/// The exits for one memory and size.
#[derive(Clone, Debug, Serialize)]
pub struct Exit {
    pub memory: MemoryKind,
    pub bytes: u64,
    /// Seconds with QEMU's own listener.
    pub stock: Spread,
    /// Seconds with the library.
    pub fast: Spread,
    /// Speed-up over stock in the same round.
    pub ratio: Spread,
}

/// The starts for one memory and size.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub memory: MemoryKind,
    pub bytes: u64,
    /// With QEMU's own listener.
    pub stock: Side,
    /// The same after QEMU's prealloc, whose fault-in is not a part of its time for mapping.
    pub prealloc: Side,
    /// The same with the threads of a context.
    pub context: Side,
    /// With the library.
    pub fast: Side,
    /// With the library in the background.
    pub background: Side,
    /// Stock's time to this point divided by the library's, in the same round.
    pub ratio: Spread,
    /// The time with prealloc to this point divided by the library's, in the same round.
    pub of_prealloc: Spread,
    /// The same for the threads of a context.
    pub of_context: Spread,
    /// Stock's time to this point divided by the one with the library in the background.
    pub background_ratio: Spread,
    /// Stock's time for mapping divided by the library's, in the same round.
    pub map_ratio: Spread,
}

/// The results of one listener.
#[derive(Clone, Debug, Serialize)]
pub struct Side {
    /// Seconds since QEMU's start.
    pub seconds: Spread,
    /// Seconds of that spent on mapping: faulting in and MAP_DMA.
    pub map: Spread,
    /// Seconds of that spent on faulting in before MAP_DMA.
    pub populate: Spread,
    /// Seconds in UNMAP_DMA.
    pub unmap: Spread,
    pub map_calls: Spread,
    pub unmap_calls: Spread,
    /// Bytes that the map calls mapped.
    pub map_bytes: Spread,
    /// The share of RAM in huge pages at the end.
    pub huge: Spread,
}

impl Summary {
    /// Aggregates starts, each given with the bytes of its guest.
    pub fn of(container: Container, starts: &[(u64, Start)], about: About) -> Self {
        let mut cases: BTreeMap<(MemoryKind, u64), Vec<&Start>> = BTreeMap::new();
        for (bytes, start) in starts {
            cases.entry((start.memory, *bytes)).or_default().push(start);
        }
        let rows = |moment: fn(&Start) -> Moment| -> Vec<Row> {
            let rows = cases.iter().map(|((memory, bytes), starts)| row(*memory, *bytes, starts, moment));
            // A run that was cut short may have results for one side only.
            rows.filter(|row| row.ratio.count > 0).collect()
        };
        let (first_instruction, kernel) = (rows(|start| start.first_instruction), rows(|start| start.kernel));
        let ends = cases.iter().map(|((memory, bytes), starts)| exit(*memory, *bytes, starts));
        Self {
            about,
            container,
            rounds: kernel.iter().map(|row| row.fast.seconds.count).max().unwrap_or(0),
            first_instruction,
            kernel,
            flat: flat::rows(starts),
            exit: ends.filter(|end| end.ratio.count > 0).collect(),
            viommu: None,
        }
    }
}

fn exit(memory: MemoryKind, bytes: u64, starts: &[&Start]) -> Exit {
    let of = |order: Order| starts.iter().filter(move |start| start.order == order);
    let seconds = |order| Spread::of(of(order).map(|start| start.exit_ns as f64 / 1e9));
    let ratio = Spread::of(of(Order::Fast).filter_map(|fast| {
        let stock = of(Order::Stock).find(|stock| stock.round == fast.round)?;
        Some(stock.exit_ns as f64 / fast.exit_ns as f64)
    }));
    Exit { memory, bytes, stock: seconds(Order::Stock), fast: seconds(Order::Fast), ratio }
}

fn row(memory: MemoryKind, bytes: u64, starts: &[&Start], moment: fn(&Start) -> Moment) -> Row {
    let of = |order: Order| starts.iter().filter(move |start| start.order == order);
    let side = |order: Order| {
        let spread =
            |value: fn(Moment) -> u64| Spread::of(of(order).map(|start| value(moment(start)) as f64));
        let seconds =
            |value: fn(Moment) -> u64| Spread::of(of(order).map(|start| value(moment(start)) as f64 / 1e9));
        Side {
            seconds: seconds(|m| m.at_ns),
            map: seconds(in_map),
            populate: seconds(|m| m.populate_ns),
            unmap: seconds(|m| m.unmap_ns),
            map_calls: spread(|m| m.map_calls),
            unmap_calls: spread(|m| m.unmap_calls),
            map_bytes: spread(|m| m.map_bytes),
            huge: Spread::of(of(order).map(|start| start.huge_bytes as f64 / bytes as f64)),
        }
    };
    // Within one round: that order's value divided by the library's.
    let ratio = |order: Order, value: fn(Moment) -> u64| {
        Spread::of(of(Order::Fast).filter_map(|fast| {
            let other = of(order).find(|other| other.round == fast.round)?;
            Some(value(moment(other)) as f64 / value(moment(fast)) as f64)
        }))
    };
    let background_ratio = Spread::of(of(Order::Background).filter_map(|background| {
        let stock = of(Order::Stock).find(|stock| stock.round == background.round)?;
        Some(moment(stock).at_ns as f64 / moment(background).at_ns as f64)
    }));
    Row {
        memory,
        bytes,
        stock: side(Order::Stock),
        prealloc: side(Order::Prealloc),
        context: side(Order::PreallocContext),
        fast: side(Order::Fast),
        background: side(Order::Background),
        background_ratio,
        ratio: ratio(Order::Stock, |m| m.at_ns),
        of_prealloc: ratio(Order::Prealloc, |m| m.at_ns),
        of_context: ratio(Order::PreallocContext, |m| m.at_ns),
        map_ratio: ratio(Order::Stock, in_map),
    }
}

fn in_map(moment: Moment) -> u64 {
    moment.map_ns + moment.populate_ns
}

#[cfg(test)]
mod tests {
    use super::*;
    use vfio_fast_e2e::Accel;
    use vfio_fast_protocol::bench::native::Machine;

    #[test]
    fn ratios_are_taken_within_a_round() {
        let mut starts = Vec::new();
        // A machine that becomes slower between the rounds.
        for (round, slow) in [(0, 1), (1, 4), (2, 4)] {
            for (order, seconds, populate) in [
                (Order::Stock, 8, 0),
                (Order::Prealloc, 5, 0),
                (Order::PreallocContext, 6, 0),
                (Order::Fast, 4, 1),
                (Order::Background, 2, 0),
            ] {
                let second = 1_000_000_000 * slow;
                let first = Moment {
                    at_ns: seconds * second,
                    map_calls: 7,
                    map_bytes: 1 << 30,
                    map_ns: second,
                    populate_ns: populate * second,
                    ..Moment::default()
                };
                let kernel = Moment { at_ns: first.at_ns + second, map_calls: 60, ..first };
                let memory = MemoryKind::AnonThp;
                let (held_bytes, locked_bytes, shmem_bytes, huge_bytes) = (1 << 30, 1 << 30, 0, 1 << 29);
                starts.push((
                    1 << 30,
                    Start {
                        round,
                        order,
                        memory,
                        greeting_ns: 1,
                        mapped_ns: 1,
                        device_ns: 1,
                        first_instruction: first,
                        kernel,
                        held_bytes,
                        locked_bytes,
                        shmem_bytes,
                        huge_bytes,
                        exit_ns: seconds * second,
                    },
                ));
            }
        }
        let about = About::new(Machine::default(), Accel::Tcg("why"), Spread::default());
        let summary = Summary::of(Container::Type1, &starts, about);
        assert_eq!((summary.first_instruction.len(), summary.kernel.len(), summary.rounds), (1, 1, 3));
        let row = &summary.first_instruction[0];
        assert_eq!(row.ratio, Spread { median: 2.0, min: 2.0, max: 2.0, count: 3 });
        let ratios = (row.map_ratio.median, row.of_prealloc.median, row.of_context.median);
        assert_eq!(ratios, (0.5, 1.25, 1.5));
        assert_eq!(row.background_ratio.median, 4.0);
        assert_eq!((row.stock.seconds.median, row.stock.seconds.min), (32.0, 8.0));
        assert_eq!((row.fast.map.median, row.fast.populate.median, row.stock.populate.max), (8.0, 4.0, 0.0));
        assert_eq!((row.fast.map_calls.median, row.fast.huge.median), (7.0, 0.5));
        let end = &summary.exit[0];
        assert_eq!((end.ratio.median, end.stock.median, end.fast.min), (2.0, 32.0, 4.0));
        let row = &summary.kernel[0];
        assert_eq!((row.stock.map_calls.median, row.ratio.median), (60.0, 1.8));
    }
}
