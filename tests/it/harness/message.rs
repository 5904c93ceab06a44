//! DNS messages as these tests write and read them: by hand, so that neither nodens nor the crate that
//! it uses judges its own work.

/// Type numbers that the tests name.
pub mod qtype {
    pub const A: u16 = 1;
    pub const NS: u16 = 2;
    pub const CNAME: u16 = 5;
    pub const SOA: u16 = 6;
    pub const PTR: u16 = 12;
    pub const MX: u16 = 15;
    pub const TXT: u16 = 16;
    pub const AAAA: u16 = 28;
    pub const SRV: u16 = 33;
    pub const OPT: u16 = 41;
    pub const IXFR: u16 = 251;
    pub const AXFR: u16 = 252;
    pub const ANY: u16 = 255;
}

/// RCODEs that the tests name.
pub mod rcode {
    pub const NOERROR: u16 = 0;
    pub const FORMERR: u16 = 1;
    pub const SERVFAIL: u16 = 2;
    pub const NXDOMAIN: u16 = 3;
    pub const NOTIMP: u16 = 4;
    pub const REFUSED: u16 = 5;
    pub const BADVERS: u16 = 16;
}

/// Bits of the flags word.
pub mod flag {
    pub const QR: u16 = 0x8000;
    pub const AA: u16 = 0x0400;
    pub const TC: u16 = 0x0200;
    pub const RD: u16 = 0x0100;
    pub const RA: u16 = 0x0080;
    pub const Z: u16 = 0x0040;
    pub const AD: u16 = 0x0020;
    pub const CD: u16 = 0x0010;
}

/// The OPT record of a query.
#[derive(Clone, Debug)]
pub struct Opt {
    pub payload: u16,
    pub version: u8,
    /// The lower half of the TTL field: DO is 0x8000.
    pub flags: u16,
    pub options: Vec<(u16, Vec<u8>)>,
}

impl Opt {
    /// Version 0 with `payload` bytes.
    pub fn new(payload: u16) -> Self {
        Self { payload, version: 0, flags: 0, options: Vec::new() }
    }

    /// The record in wire form.
    pub fn to_wire(&self) -> Vec<u8> {
        let mut rdata = Vec::new();
        for (code, data) in &self.options {
            rdata.extend(code.to_be_bytes());
            rdata.extend((data.len() as u16).to_be_bytes());
            rdata.extend(data);
        }
        let mut out = vec![0];
        out.extend(qtype::OPT.to_be_bytes());
        out.extend(self.payload.to_be_bytes());
        out.extend([0, self.version]);
        out.extend(self.flags.to_be_bytes());
        out.extend((rdata.len() as u16).to_be_bytes());
        out.extend(rdata);
        out
    }
}

/// A query to be: one question, RD set, class IN and EDNS with 1232 bytes unless changed.
#[derive(Clone, Debug)]
pub struct Ask {
    pub id: u16,
    pub flags: u16,
    pub qname: String,
    pub qtype: u16,
    pub qclass: u16,
    pub opt: Option<Opt>,
}

/// The ordinary query for `qname` and `qtype` with a random id.
pub fn ask(qname: &str, qtype: u16) -> Ask {
    Ask {
        id: rand::random(),
        flags: flag::RD,
        qname: qname.to_owned(),
        qtype,
        qclass: 1,
        opt: Some(Opt::new(1232)),
    }
}

impl Ask {
    /// The same without EDNS.
    pub fn plain(mut self) -> Self {
        self.opt = None;
        self
    }

    /// The same with this UDP payload size.
    pub fn payload(mut self, bytes: u16) -> Self {
        self.opt.get_or_insert(Opt::new(0)).payload = bytes;
        self
    }

    /// The same with DO set.
    pub fn dnssec_ok(mut self) -> Self {
        self.opt.get_or_insert(Opt::new(1232)).flags |= 0x8000;
        self
    }

    /// The same with these further bits of the flags word.
    pub fn with_flags(mut self, bits: u16) -> Self {
        self.flags |= bits;
        self
    }

    /// The same with one EDNS option more.
    pub fn option(mut self, code: u16, data: &[u8]) -> Self {
        self.opt.get_or_insert(Opt::new(1232)).options.push((code, data.to_vec()));
        self
    }

    /// The query in wire form.
    pub fn to_wire(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for number in [self.id, self.flags, 1, 0, 0, u16::from(self.opt.is_some())] {
            out.extend(number.to_be_bytes());
        }
        out.extend(name_to_wire(&self.qname));
        out.extend(self.qtype.to_be_bytes());
        out.extend(self.qclass.to_be_bytes());
        out.extend(self.opt.iter().flat_map(Opt::to_wire));
        out
    }
}

/// A name in presentation form (no escapes) as uncompressed wire bytes.
pub fn name_to_wire(name: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for label in name.trim_end_matches('.').split('.').filter(|label| !label.is_empty()) {
        out.push(label.len() as u8);
        out.extend(label.bytes());
    }
    out.push(0);
    out
}

/// One record of a response.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Record {
    pub owner: String,
    pub rtype: u16,
    pub class: u16,
    pub ttl: u32,
    /// Addresses and names readable, everything else in hexadecimal digits.
    pub data: String,
}

/// A response, read strictly: reading it panics when it is not well-formed to its last byte.
#[derive(Clone, Debug)]
pub struct Answer {
    pub wire: Vec<u8>,
    pub id: u16,
    pub flags: u16,
    /// The question with the case that it came in, its type and class.
    pub question: Option<(String, u16, u16)>,
    pub answers: Vec<Record>,
    pub authority: Vec<Record>,
    /// Without OPT.
    pub additional: Vec<Record>,
    pub opt: Option<Opt>,
    /// The upper bits of the extended RCODE.
    rcode_high: u16,
}

impl Answer {
    /// Reads `wire`.
    ///
    /// # Panics
    /// When it is malformed, has bytes behind its end or more than one question or OPT record.
    pub fn read(wire: &[u8]) -> Self {
        Self::try_read(wire).unwrap_or_else(|| panic!("a malformed response: {wire:02x?}"))
    }

    /// Reads `wire`; `None` when it is malformed.
    pub fn try_read(wire: &[u8]) -> Option<Self> {
        let counts: Vec<u16> = (0..6).map(|i| u16_at(wire, 2 * i)).collect::<Option<_>>()?;
        let mut at = 12;
        let mut question = None;
        match counts[2] {
            0 => {}
            1 => {
                let (name, end) = read_name(wire, at)?;
                question = Some((name, u16_at(wire, end)?, u16_at(wire, end + 2)?));
                at = end + 4;
            }
            _ => return None,
        }
        let mut opts = Vec::new();
        let mut sections = [Vec::new(), Vec::new(), Vec::new()];
        for (section, count) in sections.iter_mut().zip(&counts[3..]) {
            for _ in 0..*count {
                let (record, rdata, end) = read_record(wire, at)?;
                at = end;
                match record.rtype {
                    qtype::OPT => opts.push((record, rdata)),
                    _ => section.push(record),
                }
            }
        }
        if at != wire.len() || opts.len() > 1 {
            return None;
        }
        let [answers, authority, additional] = sections;
        let opt = opts.pop();
        Some(Self {
            wire: wire.to_vec(),
            id: counts[0],
            flags: counts[1],
            question,
            answers,
            authority,
            additional,
            rcode_high: opt.as_ref().map_or(0, |(record, _)| (record.ttl >> 24) as u16),
            opt: match opt {
                Some((record, rdata)) => Some(read_opt(&record, rdata)?),
                None => None,
            },
        })
    }

    /// The RCODE, extended bits included.
    pub fn rcode(&self) -> u16 {
        self.flags & 0xf | self.rcode_high << 4
    }

    pub fn has(&self, bit: u16) -> bool {
        self.flags & bit != 0
    }

    /// The data of the answer records of one type, in the order of the message.
    pub fn data(&self, rtype: u16) -> Vec<&str> {
        let records = self.answers.iter().filter(|record| record.rtype == rtype);
        records.map(|record| record.data.as_str()).collect()
    }

    /// The info codes of the extended errors.
    pub fn ede(&self) -> Vec<u16> {
        let options = self.opt.iter().flat_map(|opt| &opt.options);
        options.filter(|(code, _)| *code == 15).filter_map(|(_, data)| u16_at(data, 0)).collect()
    }

    /// The smallest TTL of the answer section.
    pub fn ttl(&self) -> Option<u32> {
        self.answers.iter().map(|record| record.ttl).min()
    }
}

/// Two bytes, big endian.
pub fn u16_at(wire: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(wire.get(at..at + 2)?.try_into().ok()?))
}

/// The name at `at` (compression followed, pointers only backwards) and the offset behind it.
pub fn read_name(wire: &[u8], at: usize) -> Option<(String, usize)> {
    let (mut text, mut here, mut end, mut limit) = (String::new(), at, None, at);
    loop {
        let len = usize::from(*wire.get(here)?);
        match len {
            0 => break,
            1..=63 => {
                for byte in wire.get(here + 1..here + 1 + len)? {
                    match byte {
                        b'.' | b'\\' | 0..=32 | 127.. => text.push_str(&format!("\\{byte:03}")),
                        _ => text.push(char::from(*byte)),
                    }
                }
                text.push('.');
                here += 1 + len;
            }
            192.. => {
                end.get_or_insert(here + 2);
                here = usize::from(u16_at(wire, here)? & 0x3fff);
                if here >= limit {
                    return None;
                }
                limit = here;
            }
            _ => return None,
        }
    }
    if text.is_empty() {
        text.push('.');
    }
    Some((text, end.unwrap_or(here + 1)))
}

/// The record at `at`, its raw data, and the offset behind it.
fn read_record(wire: &[u8], at: usize) -> Option<(Record, Vec<u8>, usize)> {
    let (owner, at) = read_name(wire, at)?;
    let (rtype, class) = (u16_at(wire, at)?, u16_at(wire, at + 2)?);
    let ttl = u32::from(u16_at(wire, at + 4)?) << 16 | u32::from(u16_at(wire, at + 6)?);
    let start = at + 10;
    let end = start + usize::from(u16_at(wire, at + 8)?);
    let rdata = wire.get(start..end)?;
    let data = read_data(wire, rtype, start, end)?;
    Some((Record { owner, rtype, class, ttl, data }, rdata.to_vec(), end))
}

/// The readable form of the data between `start` and `end`; `None` when it does not fill its length.
fn read_data(wire: &[u8], rtype: u16, start: usize, end: usize) -> Option<String> {
    let rdata = wire.get(start..end)?;
    let named = |at: usize| -> Option<String> {
        let (name, behind) = read_name(wire, at)?;
        (behind == end).then_some(name)
    };
    Some(match rtype {
        qtype::A => std::net::Ipv4Addr::from(<[u8; 4]>::try_from(rdata).ok()?).to_string(),
        qtype::AAAA => std::net::Ipv6Addr::from(<[u8; 16]>::try_from(rdata).ok()?).to_string(),
        qtype::NS | qtype::CNAME | qtype::PTR => named(start)?,
        qtype::MX => format!("{} {}", u16_at(rdata, 0)?, named(start + 2)?),
        qtype::SRV => {
            let number = |at| u16_at(rdata, at);
            format!("{} {} {} {}", number(0)?, number(2)?, number(4)?, named(start + 6)?)
        }
        qtype::SOA => {
            let (mname, at) = read_name(wire, start)?;
            let (rname, at) = read_name(wire, at)?;
            let numbers = wire.get(at..end).filter(|rest| rest.len() == 20)?;
            format!("{mname} {rname} {}", hex(numbers))
        }
        _ => hex(rdata),
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Takes an OPT record apart.
fn read_opt(record: &Record, rdata: Vec<u8>) -> Option<Opt> {
    let mut opt = Opt::new(record.class);
    opt.version = (record.ttl >> 16) as u8;
    opt.flags = record.ttl as u16;
    let mut rest = rdata.as_slice();
    while !rest.is_empty() {
        let (code, len) = (u16_at(rest, 0)?, usize::from(u16_at(rest, 2)?));
        opt.options.push((code, rest.get(4..4 + len)?.to_vec()));
        rest = &rest[4 + len..];
    }
    (record.owner == ".").then_some(opt)
}
