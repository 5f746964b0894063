// Each processor reports, starts the next by PSCI CPU_ON, and sleeps; the last one ends all.
// Options: --cpus 4

// Only the first processor runs at the start. CPU_ON names another one by its affinity and says
// where it begins: here, where all begin. There is no next one when the call fails. (Affinity 0
// counts to 15 and then carries into affinity 1, so this guest stops at 16.)

.Lsmp:
    mrs x19, mpidr_el1
    and x19, x19, #0xff             // affinity 0: this processor's number
    mov x4, #CONSOLE
    adr x2, .Lsmp_text
.Lsmp_next:
    ldrb w3, [x2], #1
    cbz w3, .Lsmp_number
    strb w3, [x4]
    b .Lsmp_next
.Lsmp_number:
    mov x2, #10
    udiv x3, x19, x2                // tens
    msub x2, x3, x2, x19            // ones
    cbz x3, .Lsmp_ones
    add x3, x3, #'0'
    strb w3, [x4]
.Lsmp_ones:
    add x2, x2, #'0'
    strb w2, [x4]
    mov w2, #'\n'
    strb w2, [x4]

    movz w0, #(PSCI_CPU_ON & 0xffff)
    movk w0, #(PSCI_CPU_ON >> 16), lsl #16
    add x1, x19, #1                 // whom
    adr x2, .Lsmp                   // where it starts
    mov x3, #0                      // what it finds in x0
    hvc #0
    cbnz x0, .Lsmp_end
.Lsmp_sleep:
    wfi
    b .Lsmp_sleep

.Lsmp_end:
    mov x1, #EXIT
    str wzr, [x1]

.Lsmp_text:
    .asciz "cpu "
