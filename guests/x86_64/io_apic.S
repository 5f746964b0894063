// Sends back what the console receives, woken by its interrupt, which came while it was masked.
// Options: --mode long --machine micro

// The console's line is an edge at input 4 of the I/O APIC, whose table says that it is vector 0x40
// for the processor with number 0. The input stays masked until a byte is there: its edge has waited.
// One interrupt tells of all bytes that have come, so the handler reads on until there is none.

.set VECTOR,           0x40
.set IDT,              0x200000
.set STACK,            0x300000
.set INTERRUPT_GATE,   0x8e00       // present, for ring 0

.set LAPIC_EOI,        0xfee000b0
.set LAPIC_SPURIOUS,   0xfee000f0   // which vector that is, and bit 8: on
.set IO_APIC_SELECT,   0xfec00000
.set IO_APIC_WINDOW,   0xfec00010
.set INPUT_4,          0x18         // its lower half; the upper one, to whom, is zero after a reset
.set MASKED,           1 << 16
.set CONSOLE_INTERRUPTS, CONSOLE + 1
.set RECEIVED,         1 << 0       // interrupt when data were received

.code64
.Lio_apic:
    mov esp, STACK
    lea rax, [rip + .Lio_apic_interrupt]
    mov edi, IDT + 16 * VECTOR
    mov [rdi], ax
    mov ecx, cs
    mov [rdi + 2], cx
    mov word ptr [rdi + 4], INTERRUPT_GATE
    shr rax, 16
    mov [rdi + 6], ax
    sub rsp, 16
    mov word ptr [rsp], 16 * VECTOR + 15
    mov qword ptr [rsp + 2], IDT
    lidt [rsp]

    mov edi, LAPIC_SPURIOUS
    mov dword ptr [rdi], 0x1ff
    mov esi, IO_APIC_SELECT
    mov edi, IO_APIC_WINDOW
    mov dword ptr [rsi], INPUT_4
    mov dword ptr [rdi], MASKED | VECTOR
    mov dx, CONSOLE_INTERRUPTS
    mov al, RECEIVED
    out dx, al
    mov dx, CONSOLE_LINE
.Lio_apic_wait:
    in al, dx
    test al, DATA_READY
    jz .Lio_apic_wait

    sti
    mov dword ptr [rdi], VECTOR
.Lio_apic_sleep:
    hlt
    jmp .Lio_apic_sleep

.Lio_apic_interrupt:
    mov dx, CONSOLE_LINE
    in al, dx
    test al, DATA_READY
    jz .Lio_apic_done
    mov dx, CONSOLE
    in al, dx
    cmp al, END_OF_INPUT
    je .Lio_apic_end
    out dx, al
    jmp .Lio_apic_interrupt
.Lio_apic_end:
    xor eax, eax
    out EXIT, eax
.Lio_apic_done:
    mov eax, LAPIC_EOI
    mov dword ptr [rax], 0
    iretq
