//! stand-in until the codec is merged
pub const HEADER_BYTES_MAX: usize = 10;
pub enum OpCode {
    Text,
}
pub fn write_header(out: &mut Vec<u8>, _opcode: OpCode, len: usize) {
    out.push(0x81);
    if len < 126 {
        out.push(len as u8)
    } else if len < 65536 {
        out.push(126);
        out.extend_from_slice(&(len as u16).to_be_bytes())
    } else {
        out.push(127);
        out.extend_from_slice(&(len as u64).to_be_bytes())
    }
}
