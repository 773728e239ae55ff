//! The documented rules of the engine, one by one, on the model: limits, device memory, exact regions, the grid, and
//! the changes that a PC's firmware makes to the memory map.

use common::memory::time_data;
use common::{RAM, hva, ram, range};
use vfio_fast_engine::addr::IovaRange;
use vfio_fast_engine::backend::PopulatePolicy;
use vfio_fast_engine::backend::sim::{Rules, Sim, SimConfig};
use vfio_fast_engine::error::{ErrorKind, Op};
use vfio_fast_engine::region::{Backing, Kind, Perm, Region};
use vfio_fast_engine::{Config, Engine, Errno};
use vfio_fast_testing as common;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
fn open(config: SimConfig) -> (Engine, Sim) {
    let sim = Sim::new(config);
    // QEMU's cut, for the shadow memory of a PC's firmware.
    let config = Config { cuts: vec![MIB], ..Config::default() };
    (Engine::new(Box::new(sim.clone()), config).unwrap(), sim)
}

fn transact(
    engine: &Engine,
    unmaps: &[IovaRange],
    maps: &[Region],
) -> Result<vfio_fast_engine::Outcome, vfio_fast_engine::Error> {
    engine.begin().unwrap();
    for range in unmaps {
        engine.unmap(*range).unwrap();
    }
    for region in maps {
        engine.map_region(*region).unwrap();
    }
    engine.commit()
}

fn held(sim: &Sim) -> Vec<(u64, u64)> {
    sim.mappings().iter().map(|mapping| (mapping.range.start(), mapping.range.length())).collect()
}

#[test]
fn opening_and_closing_shadow_memory_never_touches_high_ram() {
    let (engine, sim) = open(SimConfig::default());
    let rom = |start, length| Region { perm: Perm::Read, ..ram(start, length) };
    // SeaBIOS's changes to the first 2 GiB: closed, open for shadowing, all writable, locked.
    let closed = [ram(0, 640 * KIB), rom(0xc0000, 256 * KIB), ram(MIB, 2 * GIB - MIB), ram(4 * GIB, GIB)];
    let open =
        [ram(0, 640 * KIB), rom(0xc0000, 192 * KIB), ram(0xf0000, 2 * GIB - 0xf0000), ram(4 * GIB, GIB)];
    let writable = [ram(0, 640 * KIB), ram(0xc0000, 2 * GIB - 0xc0000), ram(4 * GIB, GIB)];
    transact(&engine, &[], &closed).unwrap();
    let mut now: &[Region] = &closed;
    for next in [&open[..], &writable, &closed, &open, &writable, &closed] {
        let ranges: Vec<IovaRange> = now.iter().map(|region| region.range).collect();
        let outcome = transact(&engine, &ranges, next).unwrap();
        assert!(outcome.executed.map_bytes <= MIB && outcome.executed.unmap_bytes <= MIB, "{outcome:?}");
        now = next;
    }
    assert_eq!(held(&sim).last_chunk(), Some(&[(MIB, GIB - MIB), (GIB, GIB), (4 * GIB, GIB)]));
    let stats = engine.stats();
    let amplification = stats.map_bytes as f64 / stats.wanted_bytes as f64;
    assert!(amplification < 1.001, "{amplification}");
}

#[test]
fn what_is_opened_and_closed_inside_an_entry_is_cut_off_once() {
    let (engine, _sim) = open(SimConfig::default());
    let (tseg, below) = (range(2 * GIB - 16 * MIB, 16 * MIB), ram(MIB, 2 * GIB - 17 * MIB));
    transact(&engine, &[], &[ram(MIB, 2 * GIB - MIB)]).unwrap();
    let first = transact(&engine, &[ram(MIB, 2 * GIB - MIB).range], &[below]).unwrap();
    assert_eq!((first.executed.unmap_bytes, first.executed.map_bytes), (GIB, GIB - 16 * MIB));
    for _ in 0..3 {
        let opened = transact(&engine, &[below.range], &[ram(MIB, 2 * GIB - MIB)]).unwrap();
        assert_eq!((opened.executed.unmap_bytes, opened.executed.map_bytes), (0, 16 * MIB));
        let closed = transact(&engine, &[ram(MIB, 2 * GIB - MIB).range], &[below]).unwrap();
        assert_eq!((closed.executed.unmap_bytes, closed.executed.map_bytes), (16 * MIB, 0));
    }
    assert_eq!(engine.unmap(tseg).unwrap(), 0);
}

#[test]
fn a_commit_that_changes_nothing_makes_no_call() {
    let (engine, sim) = open(SimConfig::default());
    transact(&engine, &[], &[ram(0, 4 * GIB)]).unwrap();
    let calls = sim.calls().len();
    transact(&engine, &[], &[]).unwrap();
    let outcome = transact(&engine, &[range(0, 4 * GIB)], &[ram(0, 4 * GIB)]).unwrap();
    assert_eq!((outcome.kept_entries, outcome.kept_bytes), (5, 4 * GIB));
    assert_eq!(sim.calls().len(), calls);
    assert_eq!(engine.stats().empty_commits, 1);
}

#[test]
fn what_is_kept_between_new_neighbours_is_left_out() {
    for (kept, first, second) in [(4, (0, 4), (4, 12)), (4, (0, 8), (8, 12))] {
        let (engine, sim) = open(SimConfig::default());
        let piece = |from: u64, to: u64| ram(GIB + from * MIB, (to - from) * MIB);
        engine.map_region(piece(kept, kept + 4)).unwrap();
        let maps = [piece(first.0, first.1), piece(second.0, second.1)];
        let outcome = transact(&engine, &[range(GIB, 12 * MIB)], &maps).unwrap();
        assert_eq!(
            (outcome.kept_bytes, outcome.executed.map_bytes, outcome.executed.unmap_bytes),
            (4 * MIB, 8 * MIB, 0)
        );
        assert_eq!(held(&sim), [(GIB, 4 * MIB), (GIB + 4 * MIB, 4 * MIB), (GIB + 8 * MIB, 4 * MIB)]);
    }
}

/// A transaction touches two parts of one entry, and only one of them is wanted as before.
#[test]
fn an_entry_is_kept_only_if_all_that_was_touched_of_it_is_wanted() {
    let whole = ram(GIB, 16 * MIB);
    let parts = [ram(GIB + 2 * MIB, MIB), ram(GIB + 8 * MIB, MIB)];
    for (gone, same) in [(parts[0], parts[1]), (parts[1], parts[0])] {
        let (engine, sim) = open(SimConfig::default());
        transact(&engine, &[], &[whole]).unwrap();
        assert_eq!(held(&sim).len(), 1);
        let outcome = transact(&engine, &[gone.range, same.range], &[same]).unwrap();
        assert_eq!((outcome.kept_entries, outcome.executed.unmap_bytes), (0, 16 * MIB));
        let (before, after) = whole.range.without(gone.range);
        let rests = [before, after].map(|rest| rest.map(|rest| (rest.start(), rest.length())).unwrap());
        assert_eq!(held(&sim), rests, "devices reach what was unmapped");
    }
}

#[test]
fn neighbours_join_only_if_they_are_one_object() {
    let (engine, sim) = open(SimConfig::default());
    let other = Region { backing: Backing(2), ..ram(GIB + 8 * MIB, 4 * MIB) };
    let unknown = Region { backing: Backing::UNKNOWN, ..ram(GIB + 12 * MIB, 4 * MIB) };
    let unknown_too = Region { backing: Backing::UNKNOWN, ..ram(GIB + 16 * MIB, 4 * MIB) };
    transact(&engine, &[], &[ram(GIB, 4 * MIB), ram(GIB + 4 * MIB, 4 * MIB), other, unknown, unknown_too])
        .unwrap();
    let lengths: Vec<u64> = held(&sim).iter().map(|(_, length)| length / MIB).collect();
    assert_eq!(lengths, [8, 4, 4, 4]);
    // Parts of a joined entry can be unmapped: the rest is mapped again.
    assert_eq!(engine.unmap(range(GIB, 4 * MIB)).unwrap(), 4 * MIB);
    assert_eq!(held(&sim)[0], (GIB + 4 * MIB, 4 * MIB));
}

#[test]
fn neighbours_join_only_if_both_ask_for_it() {
    let own = |start, length| Region { join: false, ..ram(start, length) };
    for (first, second, entries) in [
        (ram(GIB, 4 * MIB), ram(GIB + 4 * MIB, 4 * MIB), 1),
        (own(GIB, 4 * MIB), ram(GIB + 4 * MIB, 4 * MIB), 2),
        (ram(GIB, 4 * MIB), own(GIB + 4 * MIB, 4 * MIB), 2),
        (own(GIB, 4 * MIB), own(GIB + 4 * MIB, 4 * MIB), 2),
    ] {
        let (engine, sim) = open(SimConfig::default());
        transact(&engine, &[], &[first, second]).unwrap();
        assert_eq!(held(&sim).len(), entries);
        // Whatever was joined before, an entry that covers both is kept only if they are still to be joined.
        let outcome = transact(&engine, &[range(GIB, 8 * MIB)], &[ram(GIB, 8 * MIB)]).unwrap();
        assert_eq!(outcome.kept_entries, entries as u64, "each part is still wanted");
        let outcome = transact(&engine, &[range(GIB, 8 * MIB)], &[first, second]).unwrap();
        assert_eq!((outcome.kept_entries, held(&sim).len()), (entries as u64, entries));
    }
    let (engine, sim) = open(SimConfig::default());
    transact(&engine, &[], &[ram(GIB, 8 * MIB)]).unwrap();
    let parts = [own(GIB, 4 * MIB), own(GIB + 4 * MIB, 4 * MIB)];
    let outcome = transact(&engine, &[range(GIB, 8 * MIB)], &parts).unwrap();
    assert_eq!((outcome.kept_entries, outcome.executed.unmap_bytes), (0, 8 * MIB));
    assert_eq!(held(&sim), [(GIB, 4 * MIB), (GIB + 4 * MIB, 4 * MIB)]);
}

/// Memory that is unmapped as it was mapped costs as many calls, and nothing is remapped. Joined regions that are
/// unmapped one by one cost half the square of their number.
#[test]
fn regions_that_are_not_joined_are_unmapped_for_nothing() {
    const REGIONS: u64 = 4096;
    let page = 4 * KIB;
    for (join, entries, remapped) in
        [(false, REGIONS, 0), (true, 1, (1..REGIONS).map(|left| left * page).sum::<u64>())]
    {
        let (engine, sim) = open(SimConfig::default());
        let region = |n: u64| Region { join, ..ram(GIB + n * page, page) };
        transact(&engine, &[], &(0..REGIONS).map(region).collect::<Vec<_>>()).unwrap();
        assert_eq!(sim.mappings().len() as u64, entries);
        for n in 0..REGIONS {
            assert_eq!(engine.unmap(region(n).range).unwrap(), page);
        }
        let stats = engine.stats();
        assert_eq!((stats.remapped_bytes, stats.unmap_calls), (remapped, REGIONS), "join: {join}");
        assert_eq!(stats.map_bytes, REGIONS * page + remapped);
        assert!(sim.mappings().is_empty());
    }
}

#[test]
fn a_part_that_is_mapped_again_without_a_backing_is_an_entry_of_its_own() {
    for (again, rest) in [(range(GIB, MIB), range(GIB + MIB, MIB)), (range(GIB + MIB, MIB), range(GIB, MIB))]
    {
        let (engine, sim) = open(SimConfig::default());
        let unknown =
            |range: IovaRange| Region { backing: Backing::UNKNOWN, ..ram(range.start(), range.length()) };
        transact(&engine, &[], &[unknown(range(GIB, 2 * MIB))]).unwrap();
        let outcome = transact(&engine, &[again], &[unknown(again)]).unwrap();
        assert_eq!(
            (outcome.executed.unmap_calls, outcome.executed.map_calls),
            (1, 2),
            "{again} beside {rest}"
        );
        assert_eq!(held(&sim), [(GIB, MIB), (GIB + MIB, MIB)]);
    }
}

#[test]
fn the_same_address_of_another_object_is_mapped_anew() {
    let (engine, sim) = open(SimConfig::default());
    transact(&engine, &[], &[ram(GIB, GIB)]).unwrap();
    let replaced = Region { backing: Backing(2), ..ram(GIB, GIB) };
    let outcome = transact(&engine, &[replaced.range], &[replaced]).unwrap();
    assert_eq!(
        (outcome.executed.unmap_bytes, outcome.executed.map_bytes),
        (GIB, GIB),
        "other pages may lie behind it"
    );
    assert_eq!(sim.calls().len(), 3);
}

#[test]
fn exact_regions_are_one_entry_and_always_really_mapped() {
    let (engine, sim) = open(SimConfig::default());
    let exact = Region { exact: true, ..ram(MIB / 2, 3 * GIB) };
    let neighbour = Region { exact: true, ..ram(MIB / 2 + 3 * GIB, 2 * MIB) };
    transact(&engine, &[], &[exact, neighbour]).unwrap();
    assert_eq!(held(&sim), [(MIB / 2, 3 * GIB), (MIB / 2 + 3 * GIB, 2 * MIB)]);
    let error = engine.unmap(range(MIB / 2, MIB)).unwrap_err();
    assert_eq!((error.errno, error.kind), (Errno::EINVAL, ErrorKind::CutsExact { region: exact.range }));
    let outcome = transact(&engine, &[exact.range], &[exact]).unwrap();
    assert_eq!((outcome.executed.unmap_bytes, outcome.executed.map_bytes), (3 * GIB, 3 * GIB));
}

#[test]
fn too_little_memlock_is_told_with_numbers_and_touches_nothing() {
    for memlock_told in [true, false] {
        let limit = Some(GIB);
        let (engine, sim) = open(SimConfig { memlock_limit: limit, memlock_told, ..SimConfig::default() });
        transact(&engine, &[], &[ram(0, 512 * MIB)]).unwrap();
        let error = transact(&engine, &[], &[ram(4 * GIB, GIB)]).unwrap_err();
        assert_eq!(error.errno, Errno::ENOMEM);
        assert_eq!(sim.locked(), 512 * MIB);
        if memlock_told {
            assert_eq!(error.needed_and_available(), Some((GIB + 512 * MIB, GIB)));
            let text = error.to_string();
            assert!(
                text.contains("1610612736") && text.contains("1073741824") && text.contains("ulimit -l"),
                "{text}"
            );
            assert_eq!(engine.stats().preflight_refusals, 1);
        }
        // Memory that a transaction unmaps is subtracted: half a GiB is unmapped, one GiB is mapped.
        transact(&engine, &[range(0, 512 * MIB)], &[ram(4 * GIB, GIB)]).unwrap();
        assert_eq!(sim.locked(), GIB);
    }
}

#[test]
fn what_a_refused_transaction_unmaps_is_unmapped() {
    let (engine, sim) = open(SimConfig { memlock_limit: Some(2 * GIB), ..SimConfig::default() });
    transact(&engine, &[], &[ram(GIB, GIB), ram(4 * GIB, GIB)]).unwrap();
    // The preflight refuses the map, but the unmapped memory must still become inaccessible to the device. The other
    // half of its entry is mapped again.
    let error = transact(&engine, &[range(GIB, GIB / 2)], &[ram(8 * GIB, 2 * GIB)]).unwrap_err();
    assert_eq!((error.op, error.errno), (Op::Check, Errno::ENOMEM));
    assert_eq!(held(&sim), [(3 * GIB / 2, GIB / 2), (4 * GIB, GIB)]);
    assert_eq!(engine.regions().len(), 2);
}

#[test]
fn entries_are_cut_only_where_the_caller_says() {
    let open = |cuts| {
        let sim = Sim::new(SimConfig::default());
        Engine::new(Box::new(sim.clone()), Config { cuts, ..Config::default() }).map(|engine| (engine, sim))
    };
    let (engine, sim) = open(vec![]).unwrap();
    transact(&engine, &[], &[ram(0, 2 * GIB)]).unwrap();
    assert_eq!(held(&sim), [(0, GIB), (GIB, GIB)], "no cut of the engine's own");
    let (engine, sim) = open(vec![GIB / 2, 2 * MIB]).unwrap();
    transact(&engine, &[], &[ram(0, GIB), Region { exact: true, ..ram(4 * GIB, GIB) }]).unwrap();
    assert_eq!(held(&sim), [(0, 2 * MIB), (2 * MIB, GIB / 2 - 2 * MIB), (GIB / 2, GIB / 2), (4 * GIB, GIB)]);
    let error = open(vec![MIB, MIB + 0x800]).unwrap_err();
    assert_eq!((error.op, error.errno), (Op::Open, Errno::EINVAL));
    assert_eq!(error.kind, ErrorKind::Misaligned { value: MIB + 0x800, page: 4 * KIB });
}

#[test]
fn the_grid_gets_coarser_only_when_entries_run_out() {
    let (engine, sim) = open(SimConfig { dma_avail: 10, ..SimConfig::default() });
    transact(&engine, &[], &[ram(0, 4 * GIB)]).unwrap();
    assert_eq!(held(&sim).len(), 5);
    transact(&engine, &[], &[ram(64 * GIB, 16 * GIB)]).unwrap();
    assert_eq!(held(&sim).len(), 9, "four entries of 4 GiB beside the five old ones");
    let exact = |start| Region { exact: true, ..ram(start, 4 * KIB) };
    let error = transact(&engine, &[], &[exact(128 * GIB), exact(129 * GIB)]).unwrap_err();
    assert_eq!((error.errno, error.needed_and_available()), (Errno::ENOSPC, Some((2, 1))));
    assert!(error.to_string().contains("dma_entry_limit"));
    assert_eq!(held(&sim).len(), 9);
}

#[test]
fn a_guest_of_64_tib_fits_what_a_container_holds() {
    // A q35 machine of 64 TiB: shadow memory, RAM below the PCI hole, the rest above; and its devices.
    let (engine, sim) = open(SimConfig::default());
    let below = [ram(0, 0xa_0000), ram(0xc_0000, 0x2_0000), ram(0x10_0000, 2 * GIB - 0x10_0000)];
    let rest = ram(4 * GIB, 64 * 1024 * GIB - 2 * GIB);
    let bars = [(0xc000_0000, GIB / 4), (128 * 1024 * GIB, 64 * GIB)]
        .map(|(start, length)| Region { kind: Kind::Device, ..ram(start, length) });
    let regions: Vec<Region> = below.into_iter().chain([rest]).chain(bars).collect();
    transact(&engine, &[], &regions).unwrap();
    let stats = engine.stats();
    let wanted: u64 = regions.iter().map(|region| region.range.length()).sum();
    assert_eq!((stats.mapped_bytes, stats.entries), (wanted, sim.mappings().len() as u64));
    assert!(stats.entries <= SimConfig::default().dma_avail, "{} entries", stats.entries);
    // After that there is room for more changes.
    transact(&engine, &[], &[ram(200 * 1024 * GIB, GIB)]).unwrap();
}

#[test]
fn ram_the_iommu_cannot_translate_is_refused_before_anything_is_touched() {
    let valid = vec![range(0, 0xfee0_0000), range(0xfef0_0000, (1 << 39) - 0xfef0_0000)];
    let (engine, sim) = open(SimConfig { iova_ranges: valid, ..SimConfig::default() });
    let error = transact(&engine, &[], &[ram(0, GIB), ram(1 << 39, GIB)]).unwrap_err();
    assert_eq!((error.op, error.errno, error.range), (Op::Check, Errno::EINVAL, Some(range(1 << 39, GIB))));
    assert!(error.to_string().contains("[0x0, 0xfedfffff] [0xfef00000, 0x7fffffffff]"), "{error}");
    assert!(sim.calls().is_empty());
}

#[test]
fn limits_are_asked_again_before_they_refuse() {
    let (engine, sim) =
        open(SimConfig { iova_ranges: vec![range(0, GIB)], dma_avail: 2, ..SimConfig::default() });
    transact(&engine, &[], &[ram(0, GIB)]).unwrap();
    sim.reconfigure(|config| {
        config.iova_ranges = vec![range(0, 8 * GIB)];
        config.dma_avail = 4;
    });
    transact(&engine, &[], &[ram(GIB, 2 * GIB)]).unwrap();
    assert_eq!(engine.info().limits.entries, Some(0));
    sim.reconfigure(|config| config.iova_ranges.clear());
    assert_eq!(
        transact(&engine, &[], &[ram(9 * GIB, GIB)]).unwrap_err().needed_and_available(),
        Some((1, 0))
    );
}

#[test]
fn device_memory_that_cannot_be_mapped_is_told_and_not_tried_again() {
    let bar_hva = 0x6000_0000_0000;
    let (engine, sim) =
        open(SimConfig { unmappable: vec![(bar_hva + GIB, bar_hva + 2 * GIB)], ..SimConfig::default() });
    let bar = Region { kind: Kind::Device, hva: hva(bar_hva), backing: Backing(9), ..ram(64 * GIB, 4 * GIB) };
    let outcome = transact(&engine, &[], &[ram(0, GIB), bar]).unwrap();
    assert_eq!(outcome.executed.refusals.len(), 1);
    assert_eq!(
        (outcome.executed.refusals[0].region, outcome.executed.refusals[0].errno),
        (bar.range, Errno::EFAULT)
    );
    assert_eq!(held(&sim), [(0, MIB), (MIB, GIB - MIB)], "the first GiB of the BAR was taken back");
    let calls = sim.calls().len();
    transact(&engine, &[range(0, MIB)], &[ram(0, MIB)]).unwrap();
    assert_eq!(sim.calls().len(), calls);
    assert_eq!(engine.unmap(range(67 * GIB, GIB)).unwrap(), GIB);
    assert_eq!(sim.calls().len(), calls, "what is left of a refused region is not tried either");
    assert_eq!(engine.unmap(bar.range).unwrap(), 3 * GIB);
    sim.reconfigure(|config| config.unmappable.clear());
    assert!(transact(&engine, &[], &[bar]).unwrap().executed.refusals.is_empty());
    // Outside a transaction there is no outcome to report a refusal in, so the call fails and nothing is wanted.
    engine.unmap(bar.range).unwrap();
    sim.reconfigure(|config| config.unmappable = vec![(bar_hva, u64::MAX)]);
    let commits = engine.stats().commits;
    assert_eq!(engine.map_region(bar).unwrap_err().errno, Errno::EFAULT);
    assert_eq!(engine.stats().commits, commits + 1, "one call is one commit");
    assert_eq!(engine.regions().len(), 2);
}

/// What was found once is not looked for again: the same region, told again, stays mapped, and other regions of the
/// same object are neither faulted in nor counted as locked memory.
#[test]
fn device_memory_declared_as_ram_is_found_once() {
    let (start, bytes) = time_data();
    for rules in [Rules::Type1, Rules::Iommufd] {
        let populate = PopulatePolicy::Upfront;
        let (engine, _sim) = open(SimConfig { populate, rules, ..SimConfig::default() });
        let backing = Backing(3);
        let at = |iova| Region { hva: hva(start), perm: Perm::Read, backing, ..ram(iova, bytes) };
        let (region, moved) = (at(GIB), at(2 * GIB));
        let outcome = transact(&engine, &[], &[region]).unwrap();
        assert_eq!(outcome.executed.devices.len(), 1);
        let outcome = transact(&engine, &[region.range], &[region]).unwrap();
        assert_eq!((outcome.kept_bytes, outcome.executed.map_calls), (bytes, 0), "{rules:?}");
        let outcome = transact(&engine, &[region.range], &[moved]).unwrap();
        assert_eq!((outcome.executed.map_calls, outcome.executed.devices.len()), (1, 0));
        assert!(outcome.executed.populated.is_none_or(|report| report.calls == 0));
        assert_eq!(engine.entries()[0].kind, Kind::Device);
        // Only as long as the object is in use: its number may then stand for memory.
        engine.unmap(moved.range).unwrap();
        assert_eq!(transact(&engine, &[], &[region]).unwrap().executed.devices.len(), 1);
        // An object that is not known cannot be remembered.
        let unknown = Region { backing: Backing::UNKNOWN, ..moved };
        assert_eq!(transact(&engine, &[], &[unknown]).unwrap().executed.devices.len(), 1);
    }
}

/// A caller has to tell memory that a device cannot reach from a BAR that it cannot reach.
#[test]
fn a_refusal_says_what_the_region_was_declared_as() {
    let (start, bytes) = time_data();
    let config = SimConfig { unmappable: vec![(0, u64::MAX)], ..SimConfig::default() };
    let (engine, _sim) = open(config);
    let bar = Region { kind: Kind::Device, backing: Backing(9), ..ram(GIB, GIB) };
    let at = |iova| Region { hva: hva(start), perm: Perm::Read, backing: Backing(3), ..ram(iova, bytes) };
    // The second time, the memory is known to be device memory.
    for region in [at(8 * GIB), at(9 * GIB)] {
        let outcome = transact(&engine, &[bar.range], &[bar, region]).unwrap();
        let refusals = outcome.executed.refusals.iter();
        let mut declared: Vec<_> = refusals.map(|refusal| (refusal.region, refusal.declared)).collect();
        declared.sort_unstable_by_key(|(region, _)| *region);
        assert_eq!(declared, [(bar.range, Kind::Device), (region.range, Kind::Ram)]);
    }
}

#[test]
fn device_memory_that_a_failed_commit_has_found_stays_found() {
    let (start, bytes) = time_data();
    let page = 4 * KIB;
    assert!(bytes > 2 * page, "a page is not faulted in ahead");
    let nowhere = (0x7700_0000_0000, 0x7700_ffff_ffff);
    for rules in [Rules::Type1, Rules::Iommufd] {
        let (engine, sim) = open(SimConfig { rules, unmappable: vec![nowhere], ..SimConfig::default() });
        let backing = Backing(3);
        let region = Region { hva: hva(start), perm: Perm::Read, backing, ..ram(GIB, bytes) };
        transact(&engine, &[], &[region]).unwrap();
        assert_eq!(engine.entries()[0].kind, Kind::Ram, "nothing was faulted in");
        // The rest of the region is found and mapped, and another region fails.
        sim.reconfigure(|config| config.populate = PopulatePolicy::Upfront);
        let other = Region { hva: hva(nowhere.0), backing: Backing(4), ..ram(8 * GIB, 2 * page) };
        let calls = sim.calls().len();
        assert_eq!(transact(&engine, &[range(GIB, page)], &[other]).unwrap_err().errno, Errno::EFAULT);
        assert_eq!((engine.entries()[0].kind, engine.regions()[0].kind), (Kind::Device, Kind::Device));
        assert_eq!(sim.calls().len() - calls, 3, "unmapped, its rest mapped and kept: {rules:?}");
    }
}

#[test]
fn a_number_that_is_reused_in_one_transaction_stands_for_memory() {
    let (start, bytes) = time_data();
    let (engine, _sim) = open(SimConfig { populate: PopulatePolicy::Upfront, ..SimConfig::default() });
    let backing = Backing(3);
    let region = Region { hva: hva(start), perm: Perm::Read, backing, ..ram(GIB, bytes) };
    transact(&engine, &[], &[region]).unwrap();
    assert_eq!(engine.regions()[0].kind, Kind::Device);
    transact(&engine, &[region.range], &[Region { backing, ..ram(GIB, bytes) }]).unwrap();
    assert_eq!(engine.regions()[0].kind, Kind::Ram);
}

#[test]
fn arguments_are_checked_at_once() {
    let (engine, sim) = open(SimConfig::default());
    let page = 4 * KIB;
    let bad = |region: Region| engine.map_region(region).unwrap_err();
    assert_eq!(bad(ram(0x800, page)).kind, ErrorKind::Misaligned { value: 0x800, page });
    assert_eq!(bad(ram(0, 0x1800)).kind, ErrorKind::Misaligned { value: 0x1800, page });
    assert_eq!(
        bad(Region { hva: hva(RAM + 1), ..ram(0, page) }).kind,
        ErrorKind::Misaligned { value: RAM + 1, page }
    );
    assert_eq!(bad(Region { hva: hva(u64::MAX - 0xfff), ..ram(0, 2 * page) }).kind, ErrorKind::BadRange);
    assert_eq!(engine.unmap(range(0x800, page)).unwrap_err().errno, Errno::EINVAL);
    assert_eq!(engine.commit().unwrap_err().kind, ErrorKind::Transaction { open: false });
    engine.begin().unwrap();
    assert_eq!(engine.begin().unwrap_err().errno, Errno::EBUSY);
    engine.map_region(ram(0, 2 * page)).unwrap();
    let overlap = engine.map_region(ram(page, page)).unwrap_err();
    assert_eq!(
        (overlap.errno, overlap.kind),
        (Errno::EEXIST, ErrorKind::Overlap { with: range(0, 2 * page) })
    );
    engine.abort().unwrap();
    assert_eq!(engine.unmap(range(0, GIB)).unwrap(), 0, "nothing there: fine, and no call");
    assert!(sim.calls().is_empty());
}

#[test]
fn the_last_page_of_the_space_can_be_mapped_and_unmapped() {
    let (engine, sim) = open(SimConfig::default());
    let top = ram(u64::MAX - 0xfff, 0x1000);
    engine.map_region(Region { hva: hva(RAM), ..top }).unwrap();
    engine.map_region(Region { hva: hva(RAM + 0x1000), ..ram(0, 0x1000) }).unwrap();
    assert_eq!(held(&sim), [(0, 0x1000), (u64::MAX - 0xfff, 0x1000)]);
    assert_eq!(engine.unmap(top.range).unwrap(), 0x1000);
    assert_eq!(held(&sim), [(0, 0x1000)]);
}

#[test]
fn a_panic_in_a_call_leaves_a_handle_that_only_closes() {
    let (engine, sim) = open(SimConfig { panic_nth: Some(2), ..SimConfig::default() });
    let result =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| engine.map_region(ram(0, 4 * GIB))));
    assert!(result.is_err());
    engine.poison("a panic");
    assert_eq!(engine.begin().unwrap_err().errno, Errno::ENOTRECOVERABLE);
    assert!(!sim.mappings().is_empty());
    engine.close().unwrap();
    assert!(sim.mappings().is_empty(), "closing a poisoned handle empties the container");
}

#[test]
fn congruence_is_reported() {
    let (engine, _sim) = open(SimConfig::default());
    transact(&engine, &[], &[Region { hva: hva(RAM + 2 * MIB), ..ram(4 * GIB, GIB) }]).unwrap();
    let stats = engine.stats();
    assert_eq!((stats.congruent_2m_bytes, stats.congruent_1g_bytes), (GIB, 0));
}
