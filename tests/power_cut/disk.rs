//! A directory on a device that honours `fsync` and `fdatasync` and promises nothing else.
//!
//! A sync of a file covers its bytes and its length; a sync of a directory covers the names in it. A file whose name
//! is not durable is not there, however well it was synced itself. A rename is wholly there or not at all.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use super::dice::Dice;
use super::file::{Change, File, Keep};
use super::trace::Event;

/// Says of a path whether its syncs come to nothing, to show that the test would notice.
pub(crate) type Deaf = fn(&str) -> bool;
/// Names in a directory, and which node each means.
type Names = BTreeMap<String, usize>;

#[derive(Clone, Debug)]
enum Node {
    File(File),
    Dir(Dir),
}

#[derive(Clone, Debug, Default)]
struct Dir {
    durable: Names,
    now: Names,
    pending: Vec<Entry>,
    covered: usize,
}

/// A change of a directory's names, whole or not there.
#[derive(Clone, Debug)]
struct Entry {
    removed: Option<String>,
    added: Option<(String, usize)>,
}

impl Entry {
    fn apply(&self, names: &mut Names) {
        if let Some(name) = &self.removed {
            names.remove(name);
        }
        if let Some((name, node)) = &self.added {
            names.insert(name.clone(), *node);
        }
    }
}

impl Dir {
    fn change(&mut self, entry: Entry) {
        entry.apply(&mut self.now);
        self.pending.push(entry);
    }

    fn synced(&mut self, changes: usize) {
        let n = changes.saturating_sub(self.covered);
        self.pending.drain(..n).for_each(|entry| entry.apply(&mut self.durable));
        self.covered += n;
    }

    fn survivor(&self, keep: Keep, dice: &mut Dice) -> Names {
        let first = match keep {
            Keep::Nothing => 0,
            Keep::First => dice.below(self.pending.len() + 1),
            _ => self.pending.len(),
        };
        let mut names = self.durable.clone();
        for entry in &self.pending[..first] {
            if matches!(keep, Keep::All | Keep::First) || dice.coin() {
                entry.apply(&mut names);
            }
        }
        names
    }
}

/// The root and all below it. Node 0 is the root, which is durable itself.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    nodes: Vec<Node>,
    /// Syncs under way: by thread, of which node, and how many changes they cover.
    syncing: HashMap<u32, (usize, usize)>,
    /// Which syncs come to nothing.
    deaf_to: Deaf,
}

impl Disk {
    /// A disk on which all that is in `root` is durable.
    pub(crate) fn of(root: &Path) -> Self {
        let mut disk =
            Self { nodes: vec![Node::Dir(Dir::default())], syncing: HashMap::new(), deaf_to: |_| false };
        disk.read(0, root);
        disk
    }

    pub(crate) fn deaf_to(self, deaf_to: Deaf) -> Self {
        Self { deaf_to, ..self }
    }

    fn read(&mut self, node: usize, path: &Path) {
        for entry in fs::read_dir(path).unwrap() {
            let entry = entry.unwrap();
            let is_dir = entry.file_type().unwrap().is_dir();
            let child = self.nodes.len();
            self.nodes.push(match is_dir {
                true => Node::Dir(Dir::default()),
                false => Node::File(File::new(fs::read(entry.path()).unwrap())),
            });
            let name = entry.file_name().into_string().unwrap();
            let dir = self.dir(node);
            dir.durable.insert(name.clone(), child);
            dir.now.insert(name, child);
            if is_dir {
                self.read(child, &entry.path());
            }
        }
    }

    /// A process ended and another begins: syncs that were under way come to nothing.
    pub(crate) fn next_process(&mut self) {
        self.syncing.clear();
    }

    pub(crate) fn happen(&mut self, event: &Event) {
        match event {
            Event::Open { path, truncate } => {
                if self.node(path).is_none() {
                    self.create(path, Node::File(File::default()));
                } else if *truncate {
                    self.change(path, Change::SetLen(0));
                }
            }
            Event::Write { path, at, bytes } => self.change(path, Change::Write(*at as usize, bytes.clone())),
            Event::SetLen { path, len } => self.change(path, Change::SetLen(*len as usize)),
            Event::Extend { path, len } => self.change(path, Change::Extend(*len as usize)),
            Event::SyncBegins { path, thread } => self.sync_begins(path, *thread),
            Event::SyncEnds { path, thread } => self.sync_ends(path, *thread),
            Event::RangeSync { .. } | Event::Told(_) => {}
            Event::Rename { from, to } => self.rename(from, to),
            Event::Remove { path } => {
                let (dir, name) = self.parent(path);
                self.dir(dir).change(Entry { removed: Some(name), added: None });
            }
            Event::MakeDir { path } => self.create(path, Node::Dir(Dir::default())),
        }
    }

    fn create(&mut self, path: &str, node: Node) {
        self.nodes.push(node);
        let made = self.nodes.len() - 1;
        let (dir, name) = self.parent(path);
        self.dir(dir).change(Entry { removed: None, added: Some((name, made)) });
    }

    fn change(&mut self, path: &str, change: Change) {
        match self.node(path).map(|node| &mut self.nodes[node]) {
            Some(Node::File(file)) => file.change(change),
            Some(Node::Dir(_)) => panic!("{path} is a directory"),
            // Nobody will see it again.
            None => assert!(path.ends_with(" (deleted)"), "{path} was written and never made"),
        }
    }

    fn sync_begins(&mut self, path: &str, thread: u32) {
        let Some(node) = self.node(path) else { return };
        let changes = match &self.nodes[node] {
            Node::File(file) => file.changes(),
            Node::Dir(dir) => dir.covered + dir.pending.len(),
        };
        self.syncing.insert(thread, (node, changes));
    }

    fn sync_ends(&mut self, path: &str, thread: u32) {
        let Some((node, changes)) = self.syncing.remove(&thread) else { return };
        if (self.deaf_to)(path) {
            return;
        }
        match &mut self.nodes[node] {
            Node::File(file) => file.synced(changes),
            Node::Dir(dir) => dir.synced(changes),
        }
    }

    fn rename(&mut self, from: &str, to: &str) {
        let node = self.node(from).unwrap_or_else(|| panic!("{from} was renamed and never made"));
        let ((dir, old), (target, new)) = (self.parent(from), self.parent(to));
        assert_eq!(dir, target, "{from}: the model knows no renames between directories");
        self.dir(dir).change(Entry { removed: Some(old), added: Some((new, node)) });
    }

    fn dir(&mut self, node: usize) -> &mut Dir {
        match &mut self.nodes[node] {
            Node::Dir(dir) => dir,
            Node::File(_) => panic!("node {node} is a file"),
        }
    }

    fn parent(&self, path: &str) -> (usize, String) {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        let node = self.node(dir).unwrap_or_else(|| panic!("{dir} was never made"));
        (node, name.to_owned())
    }

    /// What the path means to a process now.
    fn node(&self, path: &str) -> Option<usize> {
        path.split('/').filter(|name| !name.is_empty()).try_fold(0, |node, name| match &self.nodes[node] {
            Node::Dir(dir) => dir.now.get(name).copied(),
            Node::File(_) => None,
        })
    }

    /// Writes what might be there after a power cut now below `root`, which is empty.
    pub(crate) fn rebuild(&self, root: &Path, dice: &mut Dice) {
        // Of every six cuts, in one the device kept nothing that it did not have to, and in one everything.
        let everywhere = match dice.below(6) {
            0 => Some(Keep::Nothing),
            1 => Some(Keep::All),
            _ => None,
        };
        self.write(0, root, everywhere, dice);
    }

    fn write(&self, node: usize, path: &Path, everywhere: Option<Keep>, dice: &mut Dice) {
        let keep = everywhere.unwrap_or_else(|| Keep::any(dice));
        match &self.nodes[node] {
            Node::File(file) => fs::write(path, file.survivor(keep, dice)).unwrap(),
            Node::Dir(dir) => {
                if node != 0 {
                    fs::create_dir(path).unwrap();
                }
                for (name, child) in dir.survivor(keep, dice) {
                    self.write(child, &path.join(name), everywhere, dice);
                }
            }
        }
    }
}
