// Sends back what a PL011 receives, a byte for each of its interrupts, until the input ends.
// Options: --load 0x4008027c

// All is as on QEMU's `virt`. The PL011's interrupt is the shared one number 1, INTID 33, and a
// level to begin with: a handler that reads one byte of many is called again. The controller is a
// GICv3 where the processor has registers for it, else a GICv2.
//
// Of a table of exception vectors only one entry is used. It is the second instruction here, and
// the address that this is loaded to puts it where it has to be.

.set INTID,            33
.set VECTOR,           0x280        // offset of the entry for an interrupt taken at EL1

.set GICD_CTLR,        0x0000       // distributor: on for both groups; GICv3: affinity routing
.set GICD_IGROUPR1,    0x0084       // bit 1 is INTID 33
.set GICD_ISENABLER1,  0x0104
.set GICD_ITARGETSR33, 0x0821       // GICv2: which processors
.set GICD_IROUTER33,   0x6108       // GICv3: which processor
.set GICC_CTLR,        0x00         // GICv2's interface
.set GICC_PMR,         0x04
.set GICC_IAR,         0x0c
.set GICC_EOIR,        0x10
// GICv3's interface by encodings, which every assembler knows: ICC_SRE_EL1 is s3_0_c12_c12_5,
// ICC_PMR_EL1 s3_0_c4_c6_0, ICC_IGRPEN1_EL1 s3_0_c12_c12_7, ICC_IAR1_EL1 s3_0_c12_c12_0 and
// ICC_EOIR1_EL1 s3_0_c12_c12_1.

    b .Luart

.Luart_interrupt:
    cbz x9, .Luart_which_v2
    mrs x4, s3_0_c12_c12_0          // acknowledge it: which one is it?
    b .Luart_which
.Luart_which_v2:
    ldr w4, [x3, #GICC_IAR]
.Luart_which:
    cmp w4, #INTID
    b.ne .Luart_return              // it is gone already
    ldr w5, [x1, #UART_FLAGS]
    tbnz w5, #RECEIVER_EMPTY, .Luart_done
    ldr w5, [x1]
    cmp w5, #END_OF_INPUT
    b.eq .Luart_end
    str w5, [x1]
.Luart_done:
    cbz x9, .Luart_done_v2
    msr s3_0_c12_c12_1, x4
    b .Luart_return
.Luart_done_v2:
    str w4, [x3, #GICC_EOIR]
.Luart_return:
    eret
.Luart_end:
    mov x1, #EXIT
    str wzr, [x1]

.Luart:
    adr x0, .Luart_interrupt - VECTOR
    msr vbar_el1, x0
    mov x1, #UART
    mov x2, #GIC_DISTRIBUTOR
    mov x3, #GIC_CPU_INTERFACE
    mrs x9, id_aa64pfr0_el1
    ubfx x9, x9, #24, #4            // GIC: 0 if there are no registers for it

    mov w4, #0b10011
    str w4, [x2, #GICD_CTLR]
    mov w4, #1 << (INTID - 32)
    str w4, [x2, #GICD_ISENABLER1]
    mov w0, #0xff                   // no priority is too low
    mov w5, #1
    cbz x9, .Luart_set_up_v2
    str w4, [x2, #GICD_IGROUPR1]
    str xzr, [x2, #GICD_IROUTER33]
    msr s3_0_c12_c12_5, x5
    isb
    msr s3_0_c4_c6_0, x0
    msr s3_0_c12_c12_7, x5
    isb
    b .Luart_set_up
.Luart_set_up_v2:
    strb w5, [x2, #GICD_ITARGETSR33]
    str w0, [x3, #GICC_PMR]
    str w5, [x3, #GICC_CTLR]
.Luart_set_up:
    mov w4, #0x70                   // 8 bits, FIFOs
    str w4, [x1, #UART_LINE_CONTROL]
    mov w4, #0x301                  // on: the whole, the transmitter and the receiver
    str w4, [x1, #UART_CONTROL]
    mov w4, #0x50                   // data received, also if they are few
    str w4, [x1, #UART_INTERRUPT_MASK]
    msr daifclr, #2
.Luart_sleep:
    wfi
    b .Luart_sleep
