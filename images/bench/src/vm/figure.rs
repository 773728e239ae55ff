//! Draws the plots of VM starts.

use super::summary::{Row, Side, Summary};
use crate::figure::{MARGIN, ROOM, WIDTH, heading, most};
use crate::plot::{Anchor, Area, Canvas};
use crate::table::Section;
use crate::targets::{gib, times};

/// The colours of a listener's total time and of its time in map calls.
const STOCK: [&str; 2] = ["#c9c9c9", "#7d7d7d"];
const FAST: [&str; 2] = ["#a9c7e2", "#1f6fb4"];

/// Draws the section from `y` on; returns the height of its end.
pub fn draw(canvas: &mut Canvas, y: f64, summary: &Summary, section: &Section) -> f64 {
    let mut y = heading(canvas, y, section);
    for (title, rows) in [
        ("From QEMU's start to the guest's first instruction, and times stock", &summary.first_instruction),
        ("From QEMU's start to the first output of the guest's kernel, and times stock", &summary.kernel),
    ] {
        chart(canvas, y, title, rows);
        y += 410.0;
    }
    y
}

fn chart(canvas: &mut Canvas, y: f64, title: &str, rows: &[Row]) {
    let top =
        most(rows.iter().flat_map(|row| [&row.stock, &row.fast]).map(|side| side.seconds.median)) * ROOM;
    let legend = [
        ("stock", STOCK[0]),
        ("of that in map", STOCK[1]),
        ("vfio-fast", FAST[0]),
        ("of that in map, fault-in included", FAST[1]),
    ];
    let titles = (title, "seconds, lower is better; whiskers: least to most");
    let area = Area::new(canvas, (MARGIN, y, WIDTH - 2.0 * MARGIN, 380.0), titles, &legend, top);
    // One slot per pair, and a part of a slot between memories.
    let changes = rows.windows(2).filter(|pair| pair[0].memory != pair[1].memory).count();
    let slot = area.width / (rows.len() as f64 + changes as f64 * 0.7).max(1.0);
    let bar = (slot * 0.38).min(34.0);
    let mut x = area.x;
    let mut start = x;
    for (number, row) in rows.iter().enumerate() {
        let middle = x + slot / 2.0;
        one(canvas, &area, middle - bar, bar, &row.stock, STOCK);
        one(canvas, &area, middle, bar, &row.fast, FAST);
        let above = area.level(row.stock.seconds.max.max(row.fast.seconds.max)) - 7.0;
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

fn one(canvas: &mut Canvas, area: &Area, x: f64, width: f64, side: &Side, [all, map]: [&str; 2]) {
    let part = area.level(side.map.median);
    area.bar(canvas, x, width, (side.seconds.median, side.seconds.min, side.seconds.max), all);
    canvas.bar(x, part, width, area.floor() - part, map);
}
