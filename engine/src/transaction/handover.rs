//! Hands the entries over to another process, which takes them over without a gap in the devices' access.
//!
//! The one process suspends its engine, sends the list of entries, and closes the engine or resumes it. The other one
//! declares the same regions in a transaction and adopts the entries instead of committing: the kernel's entries were
//! cut by the history of the first process, so only their list says where.

use super::lock::Locked;
use super::{Engine, Outcome, State, memory};
use crate::addr::{HostVa, IovaRange};
use crate::backend::Handover;
use crate::error::{Errno, Error, ErrorKind, Op, Result, Unfinished};
use crate::log::Level;
use crate::reconcile::table::{Entry, Generation, MapTable};
use crate::region::{Backing, Kind, Mapping, Perm};
use crate::timeline;

impl Engine {
    /// Gives up the entries, so that another process can adopt them. Devices keep their access. Until
    /// [`Engine::resume`], calls that would change something are refused, and closing unmaps nothing.
    ///
    /// No transaction may be open, no job may have anything left to map, and dirty pages must not be tracked.
    pub fn suspend(&self) -> Result<()> {
        let mut state = self.changing()?;
        let refused = |kind| Err(Error::check(Errno::EBUSY, kind));
        if state.owner.is_some() {
            return refused(ErrorKind::Transaction { open: true });
        }
        if !state.backlog.is_empty() {
            return refused(ErrorKind::Other("memory is still left to the background: wait for it first"));
        }
        if state.dirty.is_some() {
            return refused(ErrorKind::Other("dirty pages are tracked: stop that first"));
        }
        let handover = self.handover()?;
        if !state.table.is_empty() {
            handover.drop_addresses(None).map_err(|errno| Error::kernel(Op::Unmap, errno))?;
        }
        state.suspended = true;
        Ok(())
    }

    /// Takes the entries back after [`Engine::suspend`], if no other process uses them. All of them are tried. If that
    /// fails for one, the engine stays suspended, and this can be called again.
    pub fn resume(&self) -> Result<()> {
        let mut state = self.settled()?;
        if !state.suspended {
            return Err(Error::check(Errno::EINVAL, ErrorKind::Other("the mappings are not handed over")));
        }
        let handover = self.handover()?;
        let mut resumed = Ok(());
        for entry in state.table.iter() {
            resumed = resumed.and(set_address(handover, entry));
        }
        resumed?;
        state.suspended = false;
        Ok(())
    }

    /// Commits the open transaction in a container that has `entries` already: those of a process that has suspended
    /// its engine. This engine must not have mapped anything yet. Entries that map what is wanted are kept; everything
    /// else is unmapped and mapped like in any commit.
    ///
    /// If this fails, it gives the entries up again, unmaps none of them, and rolls the transaction back. The other
    /// process can resume then, unless an entry that is not wanted here was unmapped before the failure.
    pub fn adopt(&self, entries: impl IntoIterator<Item = (IovaRange, Perm)>) -> Result<Outcome> {
        let _operation = timeline::operation("adopt");
        let mut state = self.end_transaction()?;
        let entries = entries.into_iter();
        let enough = memory::check_for(entries.size_hint().0 as u64);
        let adopted = enough.and_then(|()| self.table_of(&state, entries)).and_then(|table| {
            self.set_addresses(&table)?;
            Ok(table)
        });
        match adopted {
            Ok(table) => self.commit_to(&mut state, table),
            Err(error) => {
                state.wanted.roll_back();
                state.forget_objects();
                Err(error)
            }
        }
    }

    fn handover(&self) -> Result<&dyn Handover> {
        self.backend.handover().ok_or_else(|| Error::check(Errno::EOPNOTSUPP, ErrorKind::NoHandover))
    }

    /// The table of an engine that has mapped `entries` itself. Those that do not map what is wanted are leftovers,
    /// which the commit unmaps.
    fn table_of(
        &self,
        state: &State,
        entries: impl IntoIterator<Item = (IovaRange, Perm)>,
    ) -> Result<MapTable> {
        if !state.table.is_empty() {
            return Err(Error::check(
                Errno::EBUSY,
                ErrorKind::Other("this handle has mapped something already"),
            ));
        }
        let mut table = MapTable::default();
        for (range, perm) in entries {
            if let Some(other) = table.overlapping(range).next() {
                let with = other.range;
                return Err(Error::check(Errno::EINVAL, ErrorKind::Overlap { with }).at(range));
            }
            let wanted = state.wanted.entry_on(range).filter(|entry| entry.perm == perm);
            table.insert(wanted.unwrap_or(Entry {
                range,
                hva: HostVa::from_raw(0),
                perm,
                kind: Kind::Ram,
                backing: Backing::UNKNOWN,
                generation: Generation::LEFTOVER,
            }));
        }
        Ok(table)
    }

    /// Gives all entries that are wanted their host addresses, or none.
    fn set_addresses(&self, table: &MapTable) -> Result<()> {
        let handover = self.handover()?;
        let wanted = || table.iter().filter(|entry| !entry.is_leftover());
        let failed =
            wanted().enumerate().find_map(|(done, entry)| Some((done, set_address(handover, entry).err()?)));
        let Some((done, error)) = failed else { return Ok(()) };
        self.drop_addresses(handover, wanted().take(done));
        Err(error)
    }

    fn commit_to(&self, state: &mut Locked<'_>, adopted: MapTable) -> Result<Outcome> {
        let mut scope = state.wanted.touched().to_vec();
        scope.extend(adopted.iter().filter(|entry| entry.is_leftover()).map(|entry| entry.range));
        state.table = adopted.clone();
        match self.attempt(state, &mut scope, None) {
            Ok(outcome) => {
                state.wanted.commit();
                state.settle(&scope, &[]);
                state.forget_objects();
                self.record_commit(&outcome);
                self.record_state(state);
                Ok(outcome)
            }
            Err(error) => {
                self.log.write(Level::Error, format_args!("{error}"));
                let unfinished = self.give_back(state, &adopted);
                state.wanted.roll_back();
                state.forget_objects();
                self.counters.failed_commits.add(1);
                self.record_state(state);
                Err(Error { unfinished, ..error })
            }
        }
    }

    /// Unmaps what the commit has mapped, and gives up what it has adopted. Returns what it could not unmap, which stays
    /// in the table as leftovers.
    fn give_back(&self, state: &mut State, adopted: &MapTable) -> Option<Box<Unfinished>> {
        let table = state.table.clone();
        let is_adopted = |entry: &&Entry| adopted.on(entry.range) == Some(*entry);
        let (mut left, mut unfinished) = (MapTable::default(), Unfinished::default());
        let mut executor = self.executor(state, 1);
        for entry in table.iter().filter(|entry| !is_adopted(entry)) {
            if let Err(error) = executor.unmap(entry.range) {
                self.log.write(Level::Error, format_args!("{error}"));
                left.insert(Entry { generation: Generation::LEFTOVER, ..*entry });
                unfinished.leftover.push(entry.range);
                unfinished.refused = unfinished.refused.or(Some(error.errno));
            }
        }
        let executed = executor.executed;
        self.record_executed(state, &executed);
        if let Ok(handover) = self.handover() {
            let wanted = table.iter().filter(is_adopted).filter(|entry| !entry.is_leftover());
            self.drop_addresses(handover, wanted);
        }
        // Whatever else the kernel holds is not this engine's. Poison would make closing unmap it.
        state.table = left;
        state.contradicted = false;
        (!unfinished.is_empty()).then(|| Box::new(unfinished))
    }

    fn drop_addresses<'a>(&self, handover: &dyn Handover, entries: impl Iterator<Item = &'a Entry>) {
        for entry in entries {
            if let Err(errno) = handover.drop_addresses(Some(entry.range)) {
                let error = Error::kernel(Op::Unmap, errno).at(entry.range);
                self.log.write(Level::Error, format_args!("Giving a mapping back: {error}"));
            }
        }
    }
}

/// Sets the host address of an entry. A process that ended while it adopted the entries may have set it before; then it
/// is dropped first.
fn set_address(handover: &dyn Handover, entry: &Entry) -> Result<()> {
    let mapping: Mapping = entry.mapping();
    let set = || handover.set_address(&mapping);
    let answer = match set() {
        Err(Errno::EINVAL) => handover.drop_addresses(Some(entry.range)).and_then(|()| set()),
        answer => answer,
    };
    answer.map_err(|errno| {
        let kind = match errno {
            Errno::ENOENT | Errno::EINVAL => ErrorKind::NotHandedOver,
            _ => ErrorKind::Kernel,
        };
        Error { kind, ..Error::kernel(Op::Map, errno) }.at(entry.range).at_hva(entry.hva)
    })
}
