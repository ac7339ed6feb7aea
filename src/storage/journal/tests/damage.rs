//! Decay of bytes that were durable.

use super::*;

#[test]
fn damaged_group_in_the_middle_is_reported_and_later_groups_still_come() {
    // In the header, in the records of a one-block group, in those of a longer one.
    for (damaged, offset) in [(1, 3), (1, 20), (1, 66), (1, 80), (2, 5), (2, 8000)] {
        let disk = TestDisk::default();
        let (mut log, _) = Log::open(&disk);
        let mut seqs = log.commit(&[10, 100, 9000, 10, 10]);
        let name = newest(&disk.inner);
        let at = groups(&disk.inner, &name)[damaged].0;
        flip(&disk.inner, &name, at + offset);
        let lost = seqs.remove(damaged);
        let seen = Seen::on(&disk);
        assert_eq!(seen.seqs, seqs, "group {damaged}, byte {offset}");
        assert_eq!(seen.replay.damaged.len(), 1);
        assert_eq!(seen.replay.damaged[0].first, Seq::new(lost));
        assert_eq!(seen.replay.tail_cut, None);
        assert!(Seen::from(&mut disk.handle(), lost + 1).clean(), "nobody asked for what is lost");
    }
}

#[test]
fn damaged_last_group_is_cut_and_reported() {
    for offset in [0, 3, 10, 20, 26, 30, 34, 41, 45, 50, 58, 65, 72, 5000] {
        let disk = TestDisk::default();
        let (mut log, _) = Log::open(&disk);
        log.commit(&[10, 10, 9000]);
        let name = newest(&disk.inner);
        let at = groups(&disk.inner, &name)[2].0;
        flip(&disk.inner, &name, at + offset);
        let seen = Seen::on(&disk);
        assert_eq!(seen.seqs, [1, 2], "byte {offset}");
        assert_eq!(seen.replay.tail_cut.unwrap().first, Seq::new(3), "byte {offset}");
        assert_eq!(seen.replay.damaged, []);
    }
}

#[test]
fn damaged_last_group_of_a_sealed_segment_is_damage_in_the_middle() {
    let disk = TestDisk::default();
    let (mut log, _) = Log::open(&disk);
    log.commit(&[10, 10]);
    let name = newest(&disk.inner);
    let at = groups(&disk.inner, &name)[1].0;
    let (mut log, _) = Log::open(&disk);
    log.commit(&[10]);
    // Destroyed without a trace: only the next segment knows that it was there.
    disk.inner.tamper(&name, at, |bytes| bytes[..4096].fill(0));
    let seen = Seen::on(&disk);
    assert_eq!(seen.seqs, [1, 3]);
    assert_eq!(seen.replay.damaged.len(), 1);
    assert_eq!(seen.replay.damaged[0].first, Seq::new(2));
}

#[test]
fn several_damaged_places_are_each_reported() {
    let disk = TestDisk::default();
    let (mut log, _) = Log::open(&disk);
    log.commit(&[10; 9]);
    let name = newest(&disk.inner);
    let places = groups(&disk.inner, &name);
    for index in [1, 2, 4, 8] {
        flip(&disk.inner, &name, places[index].0);
    }
    let seen = Seen::on(&disk);
    assert_eq!(seen.seqs, [1, 4, 6, 7, 8]);
    let firsts: Vec<u64> = seen.replay.damaged.iter().map(|cut| cut.first.get()).collect();
    assert_eq!(firsts, [2, 5]);
    assert_eq!(seen.replay.tail_cut.unwrap().first, Seq::new(9));
}

#[test]
fn one_damaged_copy_of_a_segment_header_costs_nothing() {
    for at in [0, 9, 20, 77, 2048, 2060] {
        let disk = TestDisk::default();
        let (mut log, _) = Log::open(&disk);
        let seqs = log.commit(&[10, 40_000, 40_000]);
        for (name, _) in headers(&disk.inner) {
            flip(&disk.inner, &name, at);
        }
        let seen = Seen::on(&disk);
        assert_eq!(seen.seqs, seqs);
        assert!(seen.clean());
    }
}

#[test]
fn lost_segment_is_reported_wherever_it_lay() {
    for (lost, rest) in [(0, vec![2, 3]), (1, vec![1, 3]), (2, vec![1, 2])] {
        let disk = TestDisk::default();
        let (mut log, _) = Log::open(&disk);
        log.commit(&[WHOLE, WHOLE, WHOLE]);
        let name = headers(&disk.inner)[lost].0.clone();
        disk.inner.tamper(&name, 0, |bytes| bytes[..4096].fill(0xee));
        let seen = Seen::on(&disk);
        assert_eq!(seen.seqs, rest);
        assert_eq!(seen.replay.damaged.len(), usize::from(lost < 2), "{lost}: {:?}", seen.replay);
        assert_eq!(seen.replay.tail_cut.is_some(), lost == 2);
        let (mut log, _) = Log::open(&disk);
        log.next = 10;
        log.commit(&[10]);
        assert_eq!(Seen::on(&disk).seqs, [rest, vec![10]].concat(), "it goes on");
    }
}

#[test]
fn file_that_became_shorter_is_a_tail_cut() {
    let disk = TestDisk::default();
    let (mut log, _) = Log::open(&disk);
    log.commit(&[10, 30_000]);
    let name = newest(&disk.inner);
    let bytes = disk.inner.contents(&name).unwrap();
    disk.inner.remove(&name).unwrap();
    let file = disk.inner.create_zeroed(&name, 20_000).unwrap();
    file.write_at(0, &bytes[..20_000]).unwrap();
    let seen = Seen::on(&disk);
    assert_eq!(seen.seqs, [1]);
    assert!(seen.replay.tail_cut.is_some());
}

#[test]
fn group_that_does_not_follow_from_the_one_before_it_is_refused() {
    let disk = TestDisk::default();
    let (mut log, _) = Log::open(&disk);
    log.commit(&[10, 10]);
    let (name, header) = headers(&disk.inner).pop().unwrap();
    let (at, _) = groups(&disk.inner, &name)[1];
    disk.inner.tamper(&name, at, |bytes| {
        let (group, _) = GroupHeader::decode(bytes, header.salt).unwrap();
        let (forged, _) = GroupHeader { prev: group.prev ^ 1, ..group }.encode(header.salt);
        bytes[..forged.len()].copy_from_slice(&forged);
    });
    let seen = Seen::on(&disk);
    assert_eq!(seen.seqs, [1]);
    assert!(seen.replay.tail_cut.unwrap().reason.contains("follow"));
}

#[test]
fn group_of_another_generation_or_epoch_is_refused_even_with_the_right_salt() {
    for stranger in [(1, 0), (0, 1)] {
        let disk = TestDisk::default();
        let (mut log, _) = Log::open(&disk);
        log.commit(&[10, 10]);
        let (name, header) = headers(&disk.inner).pop().unwrap();
        let (at, _) = groups(&disk.inner, &name)[1];
        disk.inner.tamper(&name, at, |bytes| {
            let (group, _) = GroupHeader::decode(bytes, header.salt).unwrap();
            let generation = group.generation + stranger.0;
            let epoch = Epoch(group.epoch.0 + stranger.1);
            let (forged, _) = GroupHeader { generation, epoch, ..group }.encode(header.salt);
            bytes[..forged.len()].copy_from_slice(&forged);
        });
        assert_eq!(Seen::on(&disk).seqs, [1]);
    }
}
