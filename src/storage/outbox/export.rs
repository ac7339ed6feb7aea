//! Export and import: everything that matters, as one stream. An import into an empty store is how a store is
//! compacted, or exchanged for another one.
//!
//! ```text
//! "lastmile" · version u16 · item … : kind u8 · frame
//! ```
//!
//! The first item is the table, the last one counts the items. Each item's frame is bound to its kind and number, so
//! that none can be lost, repeated or exchanged unnoticed.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::Arc;

use super::chunk::{Entry, entries};
use super::load::message_of;
use super::merge::Judge;
use super::meta::{META_VERSION, Meta, MetaError, RunInfo};
use super::shared::{Bodies, Twin, Twins};
use super::writer::{Pending, RunWriter, write_body};
use super::{Identity, OpenError, OutboxStore, keys, keys::Key, letters, rows};
use crate::codec::{self, Cipher, CodecError, Fields};
use crate::digest::Digester;
use crate::error::KeyError;
use crate::id::UserId;
use crate::ports::{Flow, Store, StoreError};
use crate::record::{Epoch, LaneId, Seq};
use crate::storage::frame::{self, FRAME_BYTES};

const MAGIC: &[u8; 8] = b"lastmile";
/// The version of the stream that this build writes, and the newest it reads.
pub const EXPORT_VERSION: u16 = 1;
/// No item is longer: the largest message and its key, with room to spare.
const MAX_ITEM_BYTES: u64 = 18 << 20;

const TABLE: u8 = 1;
const RUN: u8 = 2;
const ENTRY: u8 = 3;
const ID: u8 = 4;
const ROW: u8 = 5;
const END: u8 = 6;

/// What an export or an import carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// Live messages.
    pub messages: u64,
    /// Remembered ids.
    pub ids: u64,
    /// User rows.
    pub rows: u64,
    /// Things that are damaged in the store and were left out of an export; `verify` names them.
    pub damaged: u64,
}

/// Why an export ended early. The store is unchanged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The stream took no more.
    #[error("the export could not be written ({0}): the store is unchanged; begin the export anew")]
    Write(#[from] std::io::Error),
}

/// Why an import failed. The store is empty as before, unless it was not empty: then it is unchanged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// The store is in use. It is unchanged.
    #[error("the store is not empty: nothing was changed; import into a new one")]
    NotEmpty,
    /// The bytes are no export.
    #[error("this is no export of an outbox: nothing was imported; give what `export` wrote")]
    NotAnExport,
    /// A newer version wrote the export.
    #[error(
        "export version {found} is newer than {supported}, the newest this build reads: nothing was imported; upgrade lastmile"
    )]
    FormatTooNew {
        /// The version found.
        found: u16,
        /// The newest version this build reads.
        supported: u16,
    },
    /// The stream ends too early.
    #[error("the export is cut short after {items} items: the store is empty again; export once more")]
    Truncated {
        /// How many whole items there were.
        items: u64,
    },
    /// An item is not what was written.
    #[error("item {item} of the export is damaged ({reason}): the store is empty again; export once more")]
    Damaged {
        /// Its number.
        item: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// The export is sealed with a key that is missing.
    #[error(transparent)]
    Sealed(#[from] KeyError),
    /// The stream could not be read.
    #[error("the export could not be read ({0}): the store is empty again; import once more")]
    Read(#[source] std::io::Error),
    /// The store failed.
    #[error(transparent)]
    Open(#[from] OpenError),
}

impl From<StoreError> for ImportError {
    fn from(error: StoreError) -> Self {
        Self::Open(OpenError::Store(error))
    }
}

impl OutboxStore {
    /// Writes everything that matters: who the engine is, counters, live messages, remembered ids and rows.
    ///
    /// # Errors
    /// [`ExportError`]. What was written up to there is no export.
    pub fn export(&self, out: &mut dyn Write) -> Result<Carried, ExportError> {
        let table = self.table();
        let mut stream = Out { out, items: 0, carried: Carried::default() };
        stream.out.write_all(&[&MAGIC[..], &EXPORT_VERSION.to_le_bytes()].concat())?;
        stream.item(TABLE, &table.encode(self.cipher()))?;
        for run in &table.runs {
            stream.item(RUN, &[run.first.get().to_le_bytes(), run.last.get().to_le_bytes()].concat())?;
            self.export_entries(run, &mut stream)?;
            self.export_ids(run, &mut stream)?;
        }
        self.export_rows(&mut stream)?;
        let items = stream.items;
        stream.item(END, &items.to_le_bytes())?;
        stream.out.flush()?;
        Ok(stream.carried)
    }

    fn export_entries(&self, run: &RunInfo, stream: &mut Out<'_>) -> Result<(), ExportError> {
        let mut judge = (Judge::default(), Bodies::default());
        self.each(&keys::chunks_of(run.number, run.number), &mut |_, value| {
            let Ok(value) = value else { return stream.damaged() };
            let mut users = Vec::new();
            for entry in entries(value, &mut users) {
                match entry {
                    Ok(entry) => self.export_entry(run.number, &entry, &mut judge, stream)?,
                    Err(_) => stream.damaged()?,
                }
            }
            Ok(())
        })
    }

    fn export_entry(
        &self,
        run: u64,
        entry: &Entry<'_>,
        (judge, bodies): &mut (Judge, Bodies),
        stream: &mut Out<'_>,
    ) -> Result<(), ExportError> {
        let Ok(user) = UserId::new(entry.user) else { return stream.damaged() };
        if judge.has_ended(self, &user, entry.lane, entry.seq)? {
            return Ok(());
        }
        match message_of(self, run, entry, bodies) {
            Ok((accept, _)) => {
                let mut body = entry.seq.get().to_le_bytes().to_vec();
                self.cipher().encode_accept(&accept, &mut body);
                stream.carried.messages += 1;
                stream.item(ENTRY, &body)
            }
            Err(StoreError::Damaged { .. }) => stream.damaged(),
            Err(error) => Err(error.into()),
        }
    }

    fn export_ids(&self, run: &RunInfo, stream: &mut Out<'_>) -> Result<(), ExportError> {
        let digester = self.digester();
        self.each(&keys::dedup_of(run.number, run.number), &mut |_, value| {
            let ids =
                |value: &[u8]| codec::decode_dedup(value, digester).try_fold(0, |n, row| row.map(|_| n + 1));
            match value.map(|value| (ids(value), value)) {
                Ok((Ok(ids), value)) => {
                    stream.carried.ids += ids;
                    stream.item(ID, value)
                }
                _ => stream.damaged(),
            }
        })
    }

    fn export_rows(&self, stream: &mut Out<'_>) -> Result<(), ExportError> {
        self.each(&keys::users(), &mut |key, value| {
            let Some(Key::User { user }) = Key::decode(key) else { return Ok(()) };
            match value.and_then(|head| rows::open(self.dyn_store(), &user, key, head)) {
                Ok(row) => {
                    let id = user.as_bytes();
                    let mut body = vec![u8::try_from(id.len()).unwrap_or(u8::MAX)];
                    body.extend_from_slice(id);
                    codec::encode_row(&row, &mut body);
                    stream.carried.rows += 1;
                    stream.item(ROW, &body)
                }
                Err(_) => stream.damaged(),
            }
        })
    }

    /// Visits a range until the visitor fails.
    fn each(&self, (from, to): &keys::Range, visit: &mut Visit<'_>) -> Result<(), ExportError> {
        let mut result = Ok(());
        self.inner.store.scan(from, to, &mut |key, value| {
            result = visit(key, value);
            if result.is_ok() { Flow::Continue } else { Flow::Stop }
        })?;
        result
    }

    /// Fills an empty store with an export. Open the outbox afterwards: it is the engine that was exported.
    ///
    /// # Errors
    /// [`ImportError`].
    pub fn import(
        store: Arc<dyn Store>,
        manifest: Option<PathBuf>,
        input: &mut dyn Read,
    ) -> Result<Carried, ImportError> {
        Self::import_with(store, manifest, input, Cipher::plain())
    }

    /// The same, with what opens the export and seals what it is imported into.
    ///
    /// # Errors
    /// [`ImportError`].
    pub fn import_with(
        store: Arc<dyn Store>,
        manifest: Option<PathBuf>,
        input: &mut dyn Read,
        cipher: Cipher,
    ) -> Result<Carried, ImportError> {
        let mut used = false;
        let (from, to) = keys::everything();
        store.scan(&from, &to, &mut |_, _| {
            used = true;
            Flow::Stop
        })?;
        if used {
            return Err(ImportError::NotEmpty);
        }
        let mut stream = In { input, items: 0 };
        let meta = stream.head(&cipher)?;
        let identity = Identity { stream: meta.stream, digest_key: meta.digest_key };
        let (outbox, opened) = Self::open_with(store, manifest, meta.epoch, identity, cipher)?;
        let result = outbox.fill(opened.epoch, meta, &mut stream);
        if result.is_err() {
            while outbox.delete_some(opened.epoch, &(from.clone(), to.clone()))? {}
            outbox.sync()?;
        }
        result
    }

    fn fill(&self, epoch: Epoch, mut meta: Meta, stream: &mut In<'_>) -> Result<Carried, ImportError> {
        let mut import = Import {
            outbox: self,
            epoch,
            pending: Pending::default(),
            run: None,
            twins: Twins::default(),
            runs: Vec::new(),
            room: meta.runs.clone(),
            digester: Digester::new(meta.digest_key),
        };
        let mut carried = Carried::default();
        loop {
            let (kind, body) = stream.item()?;
            let mut fields = Fields(&body);
            match kind {
                RUN => import.begin_run(&mut fields).ok_or_else(|| stream.damaged("run"))?,
                ENTRY => {
                    carried.messages += 1;
                    import.entry(&mut fields).map_err(|e| stream.refused(e))?;
                }
                ID => carried.ids += import.ids(&body).map_err(|e| stream.damaged(&e))?,
                ROW => {
                    carried.rows += 1;
                    import.row(&mut fields)?.ok_or_else(|| stream.damaged("row"))?;
                }
                END if fields.u64() == Some(stream.items.saturating_sub(1)) => break,
                _ => return Err(stream.damaged("an item of a kind that is not expected here")),
            }
            import.write(false)?;
        }
        import.end_run();
        import.write(true)?;
        self.sync()?;
        meta.runs = import.runs;
        meta.dropping.clear();
        self.publish(epoch, |table| {
            let generation = table.generation;
            *table = Meta { generation, ..meta };
        })?;
        self.sync_table()?;
        self.write_manifest()?;
        Ok(carried)
    }
}

/// What takes a key and its value, or what is wrong with it.
type Visit<'a> = dyn FnMut(&[u8], Result<&[u8], StoreError>) -> Result<(), ExportError> + 'a;

struct Out<'a> {
    out: &'a mut dyn Write,
    items: u64,
    carried: Carried,
}

impl Out<'_> {
    fn item(&mut self, kind: u8, body: &[u8]) -> Result<(), ExportError> {
        self.out.write_all(&[kind])?;
        self.out.write_all(&frame::encode(&name(kind, self.items), body))?;
        self.items += 1;
        Ok(())
    }

    fn damaged(&mut self) -> Result<(), ExportError> {
        self.carried.damaged += 1;
        Ok(())
    }
}

/// What an item's frame is bound to.
fn name(kind: u8, number: u64) -> Vec<u8> {
    [&[kind][..], &number.to_le_bytes()].concat()
}

struct In<'a> {
    input: &'a mut dyn Read,
    items: u64,
}

impl In<'_> {
    fn head(&mut self, cipher: &Cipher) -> Result<Meta, ImportError> {
        let head = self.bytes(10).map_err(|error| match error {
            ImportError::Truncated { .. } => ImportError::NotAnExport,
            other => other,
        })?;
        let mut fields = Fields(&head);
        if fields.take::<8>() != Some(*MAGIC) {
            return Err(ImportError::NotAnExport);
        }
        match fields.u16() {
            Some(EXPORT_VERSION) => {}
            Some(found) if found > EXPORT_VERSION => {
                return Err(ImportError::FormatTooNew { found, supported: EXPORT_VERSION });
            }
            _ => return Err(ImportError::NotAnExport),
        }
        let (kind, table) = self.item()?;
        match Meta::decode(&table, cipher) {
            Ok(meta) if kind == TABLE => Ok(meta),
            Err(MetaError::Sealed(error)) => Err(ImportError::Sealed(error)),
            Err(MetaError::TooNew { found }) => {
                Err(ImportError::FormatTooNew { found: u16::from(found), supported: u16::from(META_VERSION) })
            }
            _ => Err(self.damaged("the table")),
        }
    }

    fn item(&mut self) -> Result<(u8, Vec<u8>), ImportError> {
        let mut head = self.bytes(1 + FRAME_BYTES as u64)?;
        let kind = head.remove(0);
        let mut fields = Fields(head.get(3..).unwrap_or_default());
        let len = fields.u32().map_or(u64::MAX, u64::from);
        if len > MAX_ITEM_BYTES {
            return Err(self.damaged("its length is out of range"));
        }
        head.extend_from_slice(&self.bytes(len)?);
        let body = frame::decode(&name(kind, self.items), &head).map_err(|e| self.damaged(e))?.to_vec();
        self.items += 1;
        Ok((kind, body))
    }

    /// Exactly so many bytes; memory grows with what is there, not with what is promised.
    fn bytes(&mut self, len: u64) -> Result<Vec<u8>, ImportError> {
        let mut bytes = Vec::new();
        (&mut *self.input).take(len).read_to_end(&mut bytes).map_err(ImportError::Read)?;
        if (bytes.len() as u64) < len {
            return Err(ImportError::Truncated { items: self.items });
        }
        Ok(bytes)
    }

    fn refused(&self, error: CodecError) -> ImportError {
        match error {
            CodecError::Sealed(error) => ImportError::Sealed(error),
            other => self.damaged(other),
        }
    }

    fn damaged(&self, reason: impl core::fmt::Display) -> ImportError {
        ImportError::Damaged { item: self.items, reason: reason.to_string() }
    }
}

/// An import on its way into the store.
struct Import<'a> {
    outbox: &'a OutboxStore,
    epoch: Epoch,
    pending: Pending,
    run: Option<RunWriter>,
    /// What was said to many in this run is written once again.
    twins: Twins,
    runs: Vec<RunInfo>,
    /// The runs as they were exported: how many users to expect. A hint.
    room: Vec<RunInfo>,
    digester: Digester,
}

impl Import<'_> {
    fn begin_run(&mut self, fields: &mut Fields<'_>) -> Option<()> {
        self.end_run();
        self.twins = Twins::default();
        let (first, last) = (Seq::new(fields.u64()?), Seq::new(fields.u64()?));
        let in_order = self.runs.last().is_none_or(|run| run.last < first) && first <= last;
        let number = self.outbox.take_run_number();
        let room = self.room.iter().find(|run| run.first == first).map_or(0, |run| run.users);
        let info = RunInfo::new(number, first, last);
        let (cipher, now) = (self.outbox.cipher().clone(), self.outbox.table().last_time);
        self.run = in_order.then(|| RunWriter::keyed(info, room, self.digester, cipher, now));
        in_order.then_some(())
    }

    fn end_run(&mut self) {
        let Some(mut run) = self.run.take() else { return };
        run.finish(&mut self.pending);
        run.finish_filter(&mut self.pending);
        run.info.live = run.info.entries;
        if run.info.entries > 0 || run.info.ids > 0 {
            self.runs.push(run.info);
        }
    }

    fn entry(&mut self, fields: &mut Fields<'_>) -> Result<(), CodecError> {
        let odd = |what: &str| CodecError::Body(what.to_owned());
        let run = self.run.as_mut().ok_or_else(|| odd("an entry outside of a run"))?;
        let seq = Seq::new(fields.u64().ok_or_else(|| odd("an entry without a place"))?);
        let accept = run.cipher.decode_accept(fields.0)?;
        if accept.lane() == LaneId::Dead {
            letters::list(accept.message.recipient(), &mut self.pending);
        }
        match self.twins.of(seq, &accept) {
            Twin::Of(place, at) => run.leaning(seq, &accept, (place, at), &mut self.pending),
            Twin::First => {
                run.share(seq, &accept, &mut self.pending);
                run.leaning(seq, &accept, (seq, accept.at), &mut self.pending);
            }
            Twin::None => {
                write_body(seq, &accept, &run.cipher, &mut Vec::new(), &mut self.pending);
                run.accept(seq, &accept, &mut self.pending);
            }
        }
        Ok(())
    }

    fn ids(&mut self, body: &[u8]) -> Result<u64, String> {
        let run = self.run.as_mut().ok_or("remembered ids outside of a run")?;
        let mut ids = 0;
        let mut rows = codec::decode_dedup(body, self.digester);
        while let Some(row) = rows.next() {
            run.id(&row.map_err(|e| e.to_string())?, rows.named().as_ref(), &mut self.pending);
            ids += 1;
        }
        Ok(ids)
    }

    fn row(&mut self, fields: &mut Fields<'_>) -> Result<Option<()>, StoreError> {
        let id = fields.take::<1>().and_then(|[len]| fields.bytes(usize::from(len)));
        let Some(user) = id.and_then(|id| UserId::new(id).ok()) else { return Ok(None) };
        let Ok(row) = codec::decode_row(fields.0) else { return Ok(None) };
        let version = self.outbox.take_version();
        for change in rows::write(self.outbox.dyn_store(), &user, &row, version)? {
            self.pending.push(change);
        }
        Ok(Some(()))
    }

    /// Writes what makes whole batches, or everything.
    fn write(&mut self, all: bool) -> Result<(), StoreError> {
        while self.pending.is_full() || (all && !self.pending.is_empty()) {
            self.outbox.apply(self.epoch, self.pending.take())?;
        }
        Ok(())
    }
}
