// Uses the first and the last byte of RAM (rdi), and reads and writes where there is none.
// Options: --mode long --memory 128M --reg rdi=0x7ffffff

// RAM keeps what is written. Where nothing is, nobody drives the bus: reads see all ones, and
// writes go nowhere.

.code64
.Lmemory:
    mov rsp, LOAD_FLAT
    xor ebx, ebx                    // the status: 0 while all is well
    lea rsi, [rip + .Lmemory_texts]

    xor ecx, ecx
    call .Lmemory_keeps
    call .Lmemory_report
    mov rcx, rdi
    call .Lmemory_keeps
    call .Lmemory_report

    inc rdi                         // the first byte after RAM
    cmp dword ptr [rdi], -1
    call .Lmemory_report
    mov byte ptr [rdi], 0x5a
    cmp byte ptr [rdi], 0xff
    call .Lmemory_report

    mov eax, ebx
    out EXIT, eax

// Sets ZF if the byte at rcx keeps two opposite patterns, and leaves it as it was.
.Lmemory_keeps:
    mov al, [rcx]
    mov byte ptr [rcx], 0x5a
    cmp byte ptr [rcx], 0x5a
    jne .Lmemory_restore
    mov byte ptr [rcx], 0xa5
    cmp byte ptr [rcx], 0xa5
.Lmemory_restore:
    mov [rcx], al                   // leaves the flags alone
    ret

// Prints the next text with "ok" if ZF is set; with "FAIL" if not, and then the status is 1.
.Lmemory_report:
    setne cl
    or bl, cl
    call .Lmemory_print
    push rsi
    lea rsi, [rip + .Lmemory_ok]
    test cl, cl
    jz .Lmemory_result
    lea rsi, [rip + .Lmemory_fail]
.Lmemory_result:
    call .Lmemory_print
    pop rsi
    ret

// Prints the text at rsi, and leaves rsi at what follows its zero byte.
.Lmemory_print:
    mov dx, CONSOLE
.Lmemory_next:
    lodsb
    test al, al
    jz .Lmemory_printed
    out dx, al
    jmp .Lmemory_next
.Lmemory_printed:
    ret

.Lmemory_texts:
    .asciz "first byte"
    .asciz "last byte"
    .asciz "read from nothing"
    .asciz "write to nothing"
.Lmemory_ok:
    .asciz ": ok\n"
.Lmemory_fail:
    .asciz ": FAIL\n"
