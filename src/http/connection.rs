//! The Connection field (RFC 9110 §7.6.1): what it asks for, and the fields that it takes out of a head.

use super::fault::Fault;
use super::fields::{FieldId, elements, is_hop_by_hop, survives_connection};
use super::head::{ANY_FIELD, Field, FieldsView};

/// Most options in the Connection fields of one head: each is compared with every field.
pub(super) const CONNECTION_OPTIONS_MAX: usize = 32;

/// What the Connection fields say (RFC 9110 §7.6.1).
#[derive(Clone, Copy, Default)]
pub(super) struct Connection {
    close: bool,
    keep_alive: bool,
    pub upgrade: bool,
    /// It names end-to-end fields.
    names_fields: bool,
}

impl Connection {
    pub fn read(view: FieldsView<'_>) -> Result<Self, Fault> {
        let mut says = Self::default();
        for (count, option) in view.all(FieldId::Connection).flat_map(elements).enumerate() {
            if count == CONNECTION_OPTIONS_MAX {
                return Err(Fault::BadConnection);
            }
            says.take(option)?;
        }
        Ok(says)
    }

    fn take(&mut self, option: &[u8]) -> Result<(), Fault> {
        if option.eq_ignore_ascii_case(b"close") {
            self.close = true;
        } else if option.eq_ignore_ascii_case(b"keep-alive") {
            self.keep_alive = true;
        } else if option.eq_ignore_ascii_case(b"upgrade") {
            self.upgrade = true;
        } else {
            match FieldId::of(option) {
                // RFC 9110 §7.6.1: never options; taking them away would change where the message ends or goes.
                FieldId::Host | FieldId::ContentLength | FieldId::TransferEncoding => return Err(Fault::BadConnection),
                id => self.names_fields |= !is_hop_by_hop(id),
            }
        }
        Ok(())
    }

    /// RFC 9112 §9.3.
    pub fn persists(self, minor: u8) -> bool {
        !self.close && (minor == 1 || self.keep_alive)
    }

    /// Takes out the fields that Connection names, so that key, storage and forwarding agree that they are not there.
    /// The fixed hop-by-hop ones stay for whoever needs Upgrade; `encode` never writes them.
    pub fn remove_named(self, buf: &[u8], fields: &mut Vec<Field>) {
        if !self.names_fields {
            return;
        }
        let mut kept = 0;
        for at in 0..fields.len() {
            let field = fields[at];
            // Connection itself is always kept, so all of its lines are somewhere in `fields` throughout.
            if !is_named(FieldsView { buf, fields, present: ANY_FIELD }, field) {
                fields[kept] = field;
                kept += 1;
            }
        }
        fields.truncate(kept);
    }
}

fn is_named(view: FieldsView<'_>, field: Field) -> bool {
    let name = field.name.of(view.buf);
    let removable = !is_hop_by_hop(field.id) && !survives_connection(field.id, name);
    removable && view.all(FieldId::Connection).flat_map(elements).any(|option| option.eq_ignore_ascii_case(name))
}
