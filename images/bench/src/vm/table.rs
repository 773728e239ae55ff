//! Renders VM starts as a section of the report.

use vfio_fast_protocol::job::Container;

use super::flat;
use super::summary::{Exit, Row, Side, Summary};
use crate::summary::Spread;
use crate::table::{Section, Table, ratio, seconds};
use crate::targets::{gib, percent};

pub fn section(summary: &Summary) -> Section {
    let (title, kernel) = match summary.container {
        Container::Type1 => ("In the VM", "Debian's kernel"),
        Container::Iommufd => ("In the VM, through iommufd", "the newest kernel"),
    };
    let l1 = format!(
        "{kernel}, the guest on nested KVM, an NVMe passed through; prealloc: stock with prealloc=on,prealloc-threads=2; in a context: the same with prealloc-context"
    );
    let mut about = summary.about.lines(summary.rounds, &l1);
    if summary.about.translated {
        about.push(
            "Fault-in, pin and firmware are not in its proportions either. Calls and bytes are exact.".into(),
        );
    }
    let mut tables = vec![
        (
            "From QEMU's start to the guest's first instruction: median [least – most]; ratios within a round",
            table(&summary.first_instruction),
        ),
        ("From QEMU's start to the first output of the guest's kernel", table(&summary.kernel)),
        (
            "In the background: until the guest executes, until all is mapped, until the monitor's greeting",
            flat::table(&summary.flat),
        ),
        ("From `quit` to the end of QEMU's process", exit_table(&summary.exit)),
    ];
    let with_viommu = "A guest with a strict vIOMMU reads its disk: one DMA map for each page";
    tables.extend(summary.viommu.as_ref().map(|rows| (with_viommu, rows.table())));
    Section { title, about, tables }
}

fn table(rows: &[Row]) -> Table {
    Table {
        head: vec![
            "memory",
            "size",
            "stock",
            "prealloc",
            "in a context",
            "fast",
            "background",
            "× stock",
            "background × stock",
            "× prealloc",
            "× in a context",
            "in map, stock",
            "in map, fast",
            "× stock",
            "in unmap",
            "map calls",
            "mapped, GiB",
            "in huge pages",
        ],
        rows: rows.iter().map(cells).collect(),
    }
}

fn exit_table(ends: &[Exit]) -> Table {
    let row = |end: &Exit| {
        let memory = end.memory.name().into();
        vec![memory, gib(end.bytes), seconds(end.stock), seconds(end.fast), ratio(end.ratio)]
    };
    Table { head: vec!["memory", "size", "stock", "fast", "× stock"], rows: ends.iter().map(row).collect() }
}

fn cells(row: &Row) -> Vec<String> {
    let both = |of: fn(&Side) -> Spread, show: &dyn Fn(f64) -> String| {
        format!("{} / {}", show(of(&row.stock).median), show(of(&row.fast).median))
    };
    vec![
        row.memory.name().into(),
        gib(row.bytes),
        seconds(row.stock.seconds),
        seconds(row.prealloc.seconds),
        seconds(row.context.seconds),
        seconds(row.fast.seconds),
        seconds(row.background.seconds),
        ratio(row.ratio),
        ratio(row.background_ratio),
        ratio(row.of_prealloc),
        ratio(row.of_context),
        seconds(row.stock.map),
        seconds(row.fast.map),
        ratio(row.map_ratio),
        both(|side| side.unmap, &|seconds| format!("{seconds:.3} s")),
        both(|side| side.map_calls, &|calls| calls.to_string()),
        both(|side| side.map_bytes, &|bytes| format!("{:.3}", bytes / f64::from(1 << 30))),
        both(|side| side.huge, &percent),
    ]
}
