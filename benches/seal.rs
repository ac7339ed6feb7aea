//! What encryption at rest costs: records encoded plain and sealed, decoded plain and opened, one thread, side by side.
//!
//! ```console
//! cargo bench --bench seal --features encryption [-- --quick]
//! ```

mod support;

use std::hint::black_box;
use std::sync::Arc;

use clap::Parser;
use lastmile::codec::Cipher;
use lastmile::ports::{Key, Keyring};
use lastmile::record::{Accept, Record};
use lastmile::storage::cipher;
use lastmile::{KeyId, Message, Timestamp};

use self::support::{Options, median, time};

/// Messages encoded in one go.
const BATCH: usize = 256;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = Options::parse();
    let (batches, rounds) = options.pick((200, 21), (4, 1));
    let ciphers = [Cipher::plain(), cipher(Arc::new(Keyring::new(KeyId(1), Key::new([7; 32]))))];
    println!("{:<12}{:>10}{:>12}{:>12}{:>8}", "1 thread", "bytes", "plain ns", "sealed ns", "ratio");
    for size in [256, 4096] {
        let records = records(size)?;
        let mut nanos = [[Vec::new(), Vec::new()], [Vec::new(), Vec::new()]];
        for _ in 0..rounds {
            for (at, cipher) in ciphers.iter().enumerate() {
                let (encode, decode) = round(cipher, &records, batches);
                nanos[0][at].push(encode);
                nanos[1][at].push(decode);
            }
        }
        for (what, [plain, sealed]) in ["encode", "decode"].into_iter().zip(nanos) {
            let (plain, sealed) = (median(plain), median(sealed));
            println!("{what:<12}{size:>10}{plain:>12.0}{sealed:>12.0}{:>8.2}", sealed / plain);
        }
    }
    Ok(())
}

/// Nanoseconds for one message: encoding, decoding.
fn round(cipher: &Cipher, records: &[Record], batches: usize) -> (f64, f64) {
    let each = |took: std::time::Duration| took.as_nanos() as f64 / (batches * records.len()) as f64;
    let mut bytes = Vec::new();
    let ((), encode) = time(|| {
        for _ in 0..batches {
            bytes.clear();
            records.iter().for_each(|record| cipher.encode_record(record, &mut bytes));
            black_box(&bytes);
        }
    });
    let (read, decode) = time(|| {
        let count = u32::try_from(records.len()).unwrap_or(u32::MAX);
        (0..batches)
            .map(|_| cipher.decode_records(count, &bytes).filter(Result::is_ok).count())
            .sum::<usize>()
    });
    assert_eq!(read, batches * records.len(), "everything that was encoded is read");
    (each(encode), each(decode))
}

fn records(size: usize) -> Result<Vec<Record>, Box<dyn std::error::Error>> {
    let record = |n: usize| {
        let builder = Message::to(format!("user-{n}"), "chat.message", vec![n as u8; size]).sender("sender");
        let message = builder.header("content-type", "text/plain").build()?;
        Ok(Record::Accept(Arc::new(Accept::new(message, Timestamp::ZERO))))
    };
    (0..BATCH).map(record).collect()
}
