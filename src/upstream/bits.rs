//! Which ports are in flight: one bit for each of them.

/// A set of ports, one bit each.
#[derive(Debug)]
pub struct Bits(Box<[u64; 1024]>);

impl Default for Bits {
    fn default() -> Self {
        Self(Box::new([0; 1024]))
    }
}

impl Bits {
    /// Tells whether the port is in the set.
    pub fn holds(&self, port: u16) -> bool {
        self.0[usize::from(port >> 6)] & (1 << (port & 63)) != 0
    }

    /// Puts the port in or takes it out.
    pub fn set(&mut self, port: u16, held: bool) {
        let bit = 1 << (port & 63);
        let word = &mut self.0[usize::from(port >> 6)];
        *word = if held { *word | bit } else { *word & !bit };
    }
}
