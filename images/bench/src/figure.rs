//! The plots of a run.

use super::plot::{Anchor, Area, Canvas};
use super::summary::{Row, Spread, Summary};
use super::table::{Section, fault_in};
use super::targets::{gib, percent, times};
use vfio_fast_protocol::bench::native::Case;
use vfio_fast_protocol::memory::MemoryKind;

pub const WIDTH: f64 = 1200.0;
/// The margin on each side.
pub const MARGIN: f64 = 30.0;
const HALF: f64 = (WIDTH - 3.0 * MARGIN) / 2.0;
const STOCK: &str = "#9a9a9a";
const FAST: &str = "#1f6fb4";
const BARE: &str = "#2c9c69";
const CLEAR: &str = "#d9902f";
const LINES: [&str; 5] = ["#1f6fb4", "#d9902f", "#2c9c69", "#b2365b", "#7a56b3"];
/// The vertical scale relative to the highest median; a whisker that is longer is cut off.
pub const ROOM: f64 = 1.25;
const GIB: f64 = (1u64 << 30) as f64;

/// Draws all plots, one below the other: the native ones, then those of `next`, which gets the height to start at and
/// returns the height of its end.
pub fn draw(native: Option<(&Summary, &Section)>, next: impl FnOnce(&mut Canvas, f64) -> f64) -> String {
    let mut canvas = Canvas::default();
    canvas.text(MARGIN, 40.0, 22, Anchor::Start, "vfio-fast: mapping guest memory");
    let mut y = 70.0;
    if let Some((summary, section)) = native {
        y = draw_native(&mut canvas, y, summary, section);
    }
    y = next(&mut canvas, y);
    canvas.finish(WIDTH, y)
}

/// Draws the title and the facts of a section; returns the height at which its plots begin.
pub fn heading(canvas: &mut Canvas, mut y: f64, section: &Section) -> f64 {
    canvas.text(MARGIN, y, 18, Anchor::Start, section.title);
    y += 24.0;
    for line in &section.about {
        canvas.text(MARGIN, y, 12, Anchor::Start, line);
        y += 17.0;
    }
    y + 26.0
}

/// Draws the plots of maps in L1.
pub fn draw_mapping(canvas: &mut Canvas, y: f64, summary: &Summary, section: &Section) -> f64 {
    let y = heading(canvas, y, section);
    throughput(canvas, (MARGIN, y, WIDTH - 2.0 * MARGIN, 380.0), summary);
    let y = y + 410.0;
    limits(canvas, (MARGIN, y, HALF, 360.0), summary);
    remap(canvas, (MARGIN + HALF + MARGIN, y, HALF, 360.0), summary);
    y + 390.0
}

fn draw_native(canvas: &mut Canvas, y: f64, summary: &Summary, section: &Section) -> f64 {
    let mut y = heading(canvas, y, section);
    throughput(canvas, (MARGIN, y, WIDTH - 2.0 * MARGIN, 380.0), summary);
    y += 410.0;
    let right = MARGIN + HALF + MARGIN;
    scaling(canvas, (MARGIN, y, HALF, 360.0), summary);
    limits(canvas, (right, y, HALF, 360.0), summary);
    y += 390.0;
    batches(canvas, (MARGIN, y, HALF, 360.0), summary);
    remap(canvas, (right, y, HALF, 360.0), summary);
    y + 390.0
}

type Box = (f64, f64, f64, f64);

/// Converts a time to GiB/s: median, minimum and maximum.
fn speed(bytes: u64, seconds: Spread) -> (f64, f64, f64) {
    let speed = |seconds: f64| bytes as f64 / GIB / seconds;
    (speed(seconds.median), speed(seconds.max), speed(seconds.min))
}

fn whole(spread: Spread, by: f64) -> (f64, f64, f64) {
    (spread.median * by, spread.min * by, spread.max * by)
}

/// The maximum of `values`; 0 if there are none.
pub fn most(values: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().fold(0.0, f64::max)
}

/// The engine's rows with all threads, sorted by memory.
fn own(summary: &Summary) -> Vec<&Row> {
    let mut rows: Vec<&Row> = Vec::new();
    for row in &summary.cold {
        rows.extend(summary.engine(row.memory, row.bytes).filter(|own| std::ptr::eq(*own, row)));
    }
    rows
}

fn largest(summary: &Summary) -> Vec<&Row> {
    summary.largest().into_iter().filter_map(|(memory, bytes)| summary.engine(memory, bytes)).collect()
}

/// Writes a label such as "anon-thp, 16 GiB" below a group of bars.
fn label(canvas: &mut Canvas, area: &Area, x: f64, memory: MemoryKind, below: &str) {
    canvas.text(x, area.floor() + 18.0, 12, Anchor::Middle, memory.name());
    canvas.text(x, area.floor() + 34.0, 12, Anchor::Middle, below);
}

/// Draws stock and fast for every memory and size.
fn throughput(canvas: &mut Canvas, frame: Box, summary: &Summary) {
    let rows = own(summary);
    let speeds = rows.iter().flat_map(|row| [row.stock, row.fast].map(|seconds| speed(row.bytes, seconds).0));
    let top = most(speeds) * ROOM;
    let threads = rows.first().map_or(0, |row| row.threads);
    let fast = format!("vfio-fast, {threads} threads");
    let legend = [("stock: serial, inside the pin", STOCK), (fast.as_str(), FAST)];
    let titles = (
        "Cold memory by size of the guest, and times stock",
        "GiB/s, higher is better; whiskers: least to most",
    );
    let area = Area::new(canvas, frame, titles, &legend, top);
    // One slot per pair, and an empty one between memories.
    let gaps = summary.largest().len().saturating_sub(1);
    let slot = area.width / (rows.len() as f64 + gaps as f64 * 0.7).max(1.0);
    let bar = (slot * 0.38).min(34.0);
    let mut x = area.x;
    let mut start = x;
    for (number, row) in rows.iter().enumerate() {
        let middle = x + slot / 2.0;
        let (stock, fast) = (speed(row.bytes, row.stock), speed(row.bytes, row.fast));
        area.bar(canvas, middle - bar, bar, stock, STOCK);
        area.bar(canvas, middle, bar, fast, FAST);
        let above = area.level(stock.2.max(fast.2)) - 7.0;
        canvas.text(middle, above, 12, Anchor::Middle, &times(row.ratio.median));
        canvas.text(middle, area.floor() + 18.0, 12, Anchor::Middle, &gib(row.bytes));
        x += slot;
        if rows.get(number + 1).is_none_or(|next| next.memory != row.memory) {
            canvas.text((start + x) / 2.0, area.floor() + 38.0, 14, Anchor::Middle, row.memory.name());
            x += slot * 0.7;
            start = x;
        }
    }
}

/// Draws the speed-up over stock by threads, at the largest size.
fn scaling(canvas: &mut Canvas, frame: Box, summary: &Summary) {
    let largest = summary.largest();
    let rows = |wanted: (MemoryKind, u64)| {
        let own = summary.cold.iter().filter(|row| row.case == Case::Engine);
        own.filter(move |row| (row.memory, row.bytes) == wanted)
    };
    let all = || largest.iter().flat_map(|wanted| rows(*wanted));
    let top = most(all().map(|row| row.ratio.median)) * ROOM;
    let legend: Vec<(&str, &str)> = largest.iter().map(|(memory, _)| memory.name()).zip(LINES).collect();
    let titles = ("Scaling by threads, largest guest", "times stock");
    let area = Area::new(canvas, frame, titles, &legend, top.max(1.0));
    let threads = most(all().map(|row| row.threads as f64)).max(1.0);
    // A logarithmic axis: each doubling takes the same width.
    let at =
        |count: usize| area.x + 40.0 + (area.width - 80.0) * (count as f64).log2() / threads.log2().max(1.0);
    canvas.line((area.x, area.level(1.0)), (area.x + area.width, area.level(1.0)), 1.5, STOCK, true);
    let mut counts: Vec<usize> = all().map(|row| row.threads).collect();
    counts.sort_unstable();
    counts.dedup();
    for count in counts {
        let name = if count == 1 { "1 thread".to_owned() } else { format!("{count} threads") };
        canvas.text(at(count), area.floor() + 18.0, 12, Anchor::Middle, &name);
    }
    for (wanted, colour) in largest.iter().zip(LINES) {
        let mut last: Option<(f64, f64)> = None;
        for row in rows(*wanted) {
            let x = at(row.threads);
            let point = (x, area.level(row.ratio.median));
            canvas.line((x, area.level(row.ratio.min)), (x, area.level(row.ratio.max)), 1.0, colour, false);
            if let Some(last) = last {
                canvas.line(last, point, 2.0, colour, false);
            }
            canvas.dot(point, colour);
            last = Some(point);
        }
    }
}

/// Draws the engine's speed relative to the machine's limits.
fn limits(canvas: &mut Canvas, frame: Box, summary: &Summary) {
    let rows = largest(summary);
    let top = most(rows.iter().flat_map(|row| [row.of_bare.median, row.of_clear.median]));
    let legend = [("of bare fault-in, one process per CPU", BARE), ("of clearing on all CPUs", CLEAR)];
    let titles = (
        "Speed as a part of the machine's limits, largest guest",
        "%; dashed: the 90 % of bare fault-in that are promised",
    );
    let area = Area::new(canvas, frame, titles, &legend, (top * ROOM).max(1.0) * 100.0);
    let slot = area.width / rows.len().max(1) as f64;
    let bar = (slot * 0.3).min(50.0);
    for (number, row) in rows.iter().enumerate() {
        let middle = area.x + slot * (number as f64 + 0.5);
        for (x, part, colour) in [(middle - bar, row.of_bare, BARE), (middle, row.of_clear, CLEAR)] {
            area.bar(canvas, x, bar, whole(part, 100.0), colour);
            let above = area.level(part.max * 100.0) - 6.0;
            canvas.text(x + bar / 2.0, above, 12, Anchor::Middle, &percent(part.median));
        }
        label(canvas, &area, middle, row.memory, &gib(row.bytes));
    }
    let promised = area.level(90.0);
    canvas.line((area.x, promised), (area.x + area.width, promised), 1.5, BARE, true);
}

/// Draws the speed of faulting in by bytes per call.
fn batches(canvas: &mut Canvas, frame: Box, summary: &Summary) {
    let colours = ["#d3e3f1", "#a9c7e2", "#7fb0d8", FAST, "#9a9a9a"];
    // Batches are not measured at every size.
    let measured = |memory: MemoryKind| {
        let batches =
            summary.cold.iter().filter(move |row| row.memory == memory && row.pages_per_call.is_some());
        batches.map(|row| (row.bytes, row.threads)).max()
    };
    let groups: Vec<Vec<&Row>> = summary
        .largest()
        .into_iter()
        .filter_map(|(memory, _)| {
            let wanted = measured(memory)?;
            let same = |row: &&Row| {
                let is_other_order = matches!(row.case, Case::Prealloc | Case::RegionByRegion);
                row.memory == memory && (row.bytes, row.threads) == wanted && !is_other_order
            };
            let mut rows: Vec<&Row> = summary.cold.iter().filter(same).collect();
            rows.sort_by_key(|row| (row.case == Case::InTurn, row.pages_per_call.unwrap_or(u64::MAX)));
            Some(rows)
        })
        .collect();
    let top = most(groups.iter().flatten().map(|row| speed(row.bytes, row.fast).0)) * ROOM;
    let names: Vec<String> = groups.first().into_iter().flatten().map(|row| fault_in(row)).collect();
    let legend: Vec<(&str, &str)> = names.iter().map(String::as_str).zip(colours).collect();
    let titles = ("Faulting in by calls of so many 4 KiB pages, all threads", "GiB/s with the pin");
    let area = Area::new(canvas, frame, titles, &legend, top);
    let slot = area.width / groups.len().max(1) as f64;
    for (number, rows) in groups.iter().enumerate() {
        let bar = (slot * 0.7 / rows.len().max(1) as f64).min(40.0);
        let middle = area.x + slot * (number as f64 + 0.5);
        let mut x = middle - bar * rows.len() as f64 / 2.0;
        for (row, colour) in rows.iter().zip(colours) {
            let value = speed(row.bytes, row.fast);
            area.bar(canvas, x, bar, value, colour);
            canvas.text(
                x + bar / 2.0,
                area.level(value.2) - 6.0,
                11,
                Anchor::Middle,
                &format!("{:.1}", value.0),
            );
            x += bar;
        }
        if let Some(row) = rows.first() {
            label(canvas, &area, middle, row.memory, &gib(row.bytes));
        }
    }
}

/// Draws the speed of mapping memory that is already present.
fn remap(canvas: &mut Canvas, frame: Box, summary: &Summary) {
    let rows: Vec<&Row> = summary
        .largest()
        .into_iter()
        .filter_map(|wanted| {
            let same = summary.remap.iter().filter(|row| (row.memory, row.bytes) == wanted);
            same.max_by_key(|row| row.threads)
        })
        .collect();
    let per_gib = |row: &Row, spread: Spread| whole(spread, 1e3 * GIB / row.bytes as f64);
    let top = most(rows.iter().flat_map(|row| [per_gib(row, row.stock).0, per_gib(row, row.fast).0])) * ROOM;
    let legend = [("stock", STOCK), ("vfio-fast", FAST)];
    let titles = ("Mapping memory that is there already, largest guest", "ms per GiB, lower is better");
    let area = Area::new(canvas, frame, titles, &legend, top);
    let slot = area.width / rows.len().max(1) as f64;
    let bar = (slot * 0.3).min(50.0);
    for (number, row) in rows.iter().enumerate() {
        let middle = area.x + slot * (number as f64 + 0.5);
        for (x, spread, colour) in [(middle - bar, row.stock, STOCK), (middle, row.fast, FAST)] {
            let value = per_gib(row, spread);
            area.bar(canvas, x, bar, value, colour);
            canvas.text(
                x + bar / 2.0,
                area.level(value.2) - 6.0,
                12,
                Anchor::Middle,
                &format!("{:.1}", value.0),
            );
        }
        label(canvas, &area, middle, row.memory, &gib(row.bytes));
    }
}
