//! Bytes that nobody here wrote.

use super::*;

fn random_bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// The contents of all files.
fn image(disk: &MemoryDisk) -> Vec<(String, Vec<u8>)> {
    disk.list().unwrap().into_iter().map(|name| (name.clone(), disk.contents(&name).unwrap())).collect()
}

#[test]
fn newer_format_is_refused_and_the_files_stay_untouched() {
    for vouched in [true, false] {
        let disk = TestDisk::default();
        let (mut log, _) = Log::open(&disk);
        log.commit(&[10]);
        let mut handle = disk.handle();
        let name = newest(&disk.inner);
        disk.inner.tamper(&name, 0, |bytes| {
            for copy in if vouched { &[0_usize][..] } else { &[0, 2048] } {
                bytes[copy + 8] = 9;
                if vouched {
                    let crc = crc32c::crc32c(&bytes[*copy..copy + 76]);
                    bytes[copy + 76..copy + 80].copy_from_slice(&crc.to_le_bytes());
                }
            }
        });
        let before = image(&disk.inner);
        disk.take_counts();
        let too_new = |error| matches!(error, JournalError::FormatTooNew { found: 9, supported: 1 });
        assert!(too_new(handle.replay(Seq::ZERO, &mut |_| Ok(())).unwrap_err()));
        assert!(too_new(handle.begin(Epoch(9)).unwrap_err()));
        assert!(too_new(FileJournal::open(Arc::new(disk.clone()) as Arc<dyn Disk>, CONFIG).unwrap_err()));
        assert_eq!(disk.take_counts(), (0, 0));
        assert!(image(&disk.inner) == before);
    }
}

#[test]
fn opening_and_replaying_touch_nothing() {
    let disk = TestDisk::default();
    let (mut log, _) = Log::open(&disk);
    log.commit(&[10, WHOLE]);
    log.append(10);
    disk.take_counts();
    Seen::on(&disk);
    assert_eq!(disk.take_counts(), (0, 0));
}

#[test]
fn arbitrary_files_neither_panic_nor_replay_anything() {
    for seed in 0..200 {
        let disk = TestDisk::default();
        for id in 0..4 {
            let len = random_bytes(seed * 7 + id, 3).iter().fold(0, |len, byte| len * 40 + *byte as usize);
            let file = disk.inner.create_zeroed(&format!("segment-{id:06}.journal"), len as u64).unwrap();
            file.write_at(0, &random_bytes(seed + id, len)).unwrap();
        }
        let (mut log, seen) = Log::open(&disk);
        assert_eq!(seen.seqs, [0; 0]);
        log.commit(&[10]);
        assert_eq!(Seen::on(&disk).seqs, [1]);
    }
}

#[test]
fn arbitrary_changes_never_panic_and_never_invent_a_group() {
    for seed in 0..400_u64 {
        let disk = TestDisk::default();
        let (mut log, _) = Log::open(&disk);
        log.commit(&[10, 9000, 40_000, 10, 30_000]);
        for change in 0..1 + seed % 6 {
            let random = random_bytes(seed * 100 + change, 16);
            let number = |at: usize| random[at] as usize + 256 * random[at + 1] as usize;
            let name = headers(&disk.inner).get(number(0) % 3).map(|(name, _)| name.clone());
            let Some(name) = name else { continue };
            // Mostly where headers lie, sometimes anywhere.
            let at = if random[2] < 200 { number(4) % 14 * 4096 + number(6) % 80 } else { number(8) };
            disk.inner.tamper(&name, 0, |bytes| {
                let len = bytes.len();
                bytes[at % len] ^= random[10] | 1;
            });
        }
        let mut journal = disk.handle();
        let mut groups = 0;
        let visit = &mut |group: Group<'_>| {
            assert_eq!(group.records, records(group.first.get(), group.records.len()));
            assert!((1..=5).contains(&group.first.get()));
            groups += 1;
            Ok(())
        };
        let replay = journal.replay(Seq::ZERO, visit).unwrap();
        let reported = replay.tail_cut.is_some() || !replay.damaged.is_empty();
        assert!(groups == 5 || reported, "{replay:?}");
    }
}

#[test]
fn headers_with_absurd_numbers_are_survived() {
    let disk = TestDisk::default();
    let (mut log, _) = Log::open(&disk);
    log.commit(&[10]);
    let (name, header) = headers(&disk.inner).pop().unwrap();
    let absurd = [
        SegmentHeader { generation: u64::MAX, ..header },
        SegmentHeader { oldest: u64::MAX, ..header },
        SegmentHeader { first_number: u64::MAX, continues: u64::MAX - 1, ..header },
        SegmentHeader { base: Seq::MAX, ..header },
        SegmentHeader { released: true, generation: u64::MAX, ..header },
    ];
    for header in absurd {
        let mut block = Vec::new();
        header.encode_block(&mut block);
        disk.inner.tamper(&name, 0, |bytes| bytes[..4096].copy_from_slice(&block));
        let mut journal = disk.handle();
        Seen::all(&mut journal);
        let _ = journal.begin(Epoch(2));
    }
}

#[test]
fn group_that_claims_more_than_the_file_holds_is_not_read() {
    let disk = TestDisk::default();
    let (mut log, _) = Log::open(&disk);
    log.commit(&[10, 10]);
    let (name, header) = headers(&disk.inner).pop().unwrap();
    let (at, _) = groups(&disk.inner, &name)[1];
    disk.inner.tamper(&name, at, |bytes| {
        let (group, _) = GroupHeader::decode(bytes, header.salt).unwrap();
        let (forged, _) = GroupHeader { len: u32::MAX, ..group }.encode(header.salt);
        bytes[..forged.len()].copy_from_slice(&forged);
    });
    let seen = Seen::on(&disk);
    assert_eq!(seen.seqs, [1]);
    assert!(seen.replay.tail_cut.is_some());
}

#[test]
fn payload_that_poses_as_a_group_does_not_replay() {
    let disk = TestDisk::default();
    let (mut log, _) = Log::open(&disk);
    log.commit(&[10]);
    // A sender that guesses everything but the salt, and the group around it is damaged.
    let forged = GroupHeader {
        generation: 1,
        number: 3,
        epoch: Epoch(1),
        count: 1,
        first: Seq::new(3),
        len: 0,
        payload_crc: crc32c::crc32c(b""),
        prev: 0,
        durable: 1,
    };
    let mut payload = vec![0; 4096 - 72];
    payload.extend_from_slice(&forged.encode(0).0);
    payload.resize(9000, 0);
    let group = Group { first: Seq::new(2), count: 1, records: &payload };
    log.journal.append(log.epoch, group, true).unwrap();
    log.sync().unwrap();
    let name = newest(&disk.inner);
    let (at, _) = groups(&disk.inner, &name)[1];
    flip(&disk.inner, &name, at + 9);
    let seen = Seen::on(&disk);
    assert_eq!(seen.seqs, [1]);
    assert!(seen.replay.tail_cut.is_some());
}
