// Crashes: an undefined instruction where nobody handles exceptions.
// Options:

// The processor goes to the vector for exceptions at VBAR_EL1, which this guest never set. The
// vectors that are there until a guest brings its own say so to the monitor.

    mov x0, #42                     // registers are as they were: look at the report
    udf #0
    mov x1, #EXIT                   // not reached
    str wzr, [x1]
