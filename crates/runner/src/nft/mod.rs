//! nftables through netlink: tables, chains and rules encoded as the kernel reads them (nf_tables.h).
//!
//! Only what capture ([`capture`]) and cluster addresses ([`services`]) need. A [`Ruleset`] replaces
//! a whole table in one transaction, so there is never a moment with half the rules.
pub mod capture;
pub mod expr;
pub mod services;

use std::io;

use nix::sys::socket::SockProtocol;

pub use expr::{Cidr, Rule};

use crate::netlink::{Message, NLM_F_APPEND, NLM_F_CREATE, Socket};

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEWTABLE: u16 = SUBSYSTEM << 8;
const DELTABLE: u16 = SUBSYSTEM << 8 | 2;
const NEWCHAIN: u16 = SUBSYSTEM << 8 | 3;
const NEWRULE: u16 = SUBSYSTEM << 8 | 6;
const FAMILY_INET: u8 = 1;

/// Where a base chain hangs. The numbers are netfilter's hooks and the usual nat priorities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Destination rewriting of packets that arrive.
    NatPrerouting,
    /// Destination rewriting of packets made here.
    NatOutput,
    /// Source rewriting.
    NatPostrouting,
    /// Refusals just after destination rewriting.
    FilterPrerouting,
}

impl Hook {
    fn parts(self) -> (&'static str, u32, i32) {
        match self {
            Self::NatPrerouting => ("nat", 0, -100),
            Self::NatOutput => ("nat", 3, -100),
            Self::NatPostrouting => ("nat", 4, 100),
            Self::FilterPrerouting => ("filter", 0, -90),
        }
    }
}

/// A chain and its rules, in order; without a hook it is entered by jump only.
#[derive(Clone, Debug)]
pub struct Chain {
    pub name: String,
    pub hook: Option<Hook>,
    pub rules: Vec<Rule>,
}

impl Chain {
    /// A chain hung on `hook`; a packet that no rule decides passes.
    pub fn base(name: &str, hook: Hook, rules: Vec<Rule>) -> Self {
        Self { name: name.to_owned(), hook: Some(hook), rules }
    }

    /// A chain entered by jump or goto.
    pub fn plain(name: impl Into<String>, rules: Vec<Rule>) -> Self {
        Self { name: name.into(), hook: None, rules }
    }
}

/// The whole content of one `inet` table.
#[derive(Clone, Debug)]
pub struct Ruleset {
    pub table: String,
    pub chains: Vec<Chain>,
}

fn generic(family: u8, resource: u16) -> [u8; 4] {
    let [a, b] = resource.to_be_bytes();
    [family, 0, a, b]
}

impl Ruleset {
    /// The messages of a transaction that replaces the table: it is made (in case there is none), dropped, and made anew.
    pub fn messages(&self) -> Vec<Message> {
        let mut batch = vec![Message::new(BATCH_BEGIN, 0, &generic(0, SUBSYSTEM))];
        batch.push(self.table_message(NEWTABLE, NLM_F_CREATE));
        batch.push(self.table_message(DELTABLE, 0));
        batch.push(self.table_message(NEWTABLE, NLM_F_CREATE));
        // All chains first: a rule may jump to a chain that stands further down.
        batch.extend(self.chains.iter().map(|chain| self.chain_message(chain)));
        for chain in &self.chains {
            batch.extend(chain.rules.iter().map(|rule| self.rule_message(&chain.name, rule)));
        }
        if let Some(last) = batch.last_mut() {
            last.want_ack();
        }
        batch.push(Message::new(BATCH_END, 0, &generic(0, SUBSYSTEM)));
        batch
    }

    fn table_message(&self, kind: u16, flags: u16) -> Message {
        let mut m = Message::new(kind, flags, &generic(FAMILY_INET, 0));
        m.text(1, &self.table);
        m
    }

    fn chain_message(&self, chain: &Chain) -> Message {
        let mut m = Message::new(NEWCHAIN, NLM_F_CREATE, &generic(FAMILY_INET, 0));
        m.text(1, &self.table).text(3, &chain.name);
        if let Some(hook) = chain.hook {
            let (kind, number, priority) = hook.parts();
            m.nest(4, |m| {
                m.u32_be(1, number).u32_be(2, priority as u32);
            });
            m.text(7, kind);
        }
        m
    }

    fn rule_message(&self, chain: &str, rule: &Rule) -> Message {
        let mut m = Message::new(NEWRULE, NLM_F_CREATE | NLM_F_APPEND, &generic(FAMILY_INET, 0));
        m.text(1, &self.table).text(2, chain).nest(4, |m| rule.encode(m));
        m
    }

    /// Commits the table in the calling thread's network namespace.
    ///
    /// # Errors
    /// The kernel's, naming what is likely missing.
    pub fn commit(&self) -> io::Result<()> {
        let explained = |e: io::Error| {
            let hint = match e.raw_os_error() {
                Some(libc::EPROTONOSUPPORT | libc::EOPNOTSUPP | libc::ENOENT) => {
                    " (kernel without nf_tables nat? try: modprobe nft_nat nft_redir)"
                }
                Some(libc::EMSGSIZE) => " (more rules than one transaction holds: raise net.core.wmem_max)",
                _ => "",
            };
            io::Error::new(e.kind(), format!("cannot set nftables rules in table {}: {e}{hint}", self.table))
        };
        let mut socket = Socket::open(SockProtocol::NetlinkNetFilter).map_err(explained)?;
        socket.grow_send_buffer(4 << 20);
        socket.transfer(&self.messages()).map_err(explained)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    #[test]
    fn a_small_table_encodes_to_the_kernels_bytes() {
        let set = Ruleset {
            table: "t".into(),
            chains: vec![Chain::base("c", Hook::NatOutput, vec![Rule::new().tcp().destination_port(80).redirect(15001)])],
        };
        let all: Vec<String> = set.messages().iter().map(|m| hex(&m.encode(1))).collect();
        assert_eq!(all.len(), 7);
        assert_eq!(all[0], "1400000010000100010000000000000000".to_owned() + "00000a", "batch begin names subsystem 10");
        // NEWTABLE inet "t"
        assert_eq!(all[1], "1c000000000a01040100000000000000010000000600010074000000");
        // NEWCHAIN: table, name, hook {3, -100}, type nat
        assert_eq!(
            all[4],
            "40000000030a0104010000000000000001000000060001007400000006000300630000001400048008000100000000030800020\
             0ffffff9c080007006e617400"
        );
        assert!(all[5].starts_with("") && all[5].contains(&hex(b"redir\0")) && all[5].contains(&hex(b"payload\0")));
        assert!(all[5].contains("3a99"), "port 15001 in network order");
        assert_eq!(
            u16::from_str_radix(&format!("{}{}", &all[5][14..16], &all[5][12..14]), 16).unwrap(),
            0x0c05,
            "create, append, ack, request"
        );
    }
}
